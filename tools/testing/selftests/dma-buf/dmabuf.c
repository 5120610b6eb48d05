// SPDX-License-Identifier: GPL-2.0
/*
 * The user ABI of the dma-buf core: what a buffer does whoever exports it.
 *
 * Buffers come from the system heap, from udmabuf and from the Rust sample, fences from sw_sync.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/vfs.h>

#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/magic.h>
#include <linux/sync_file.h>
#include <linux/udmabuf.h>

#include "kselftest_harness.h"
#include "rust_dma_buf.h"

#define NUM_PAGES	4
#define TIMEOUT		10	/* seconds for what has to happen */
#define BAD_PTR		((void *)1)
#define POLL_RW		(POLLIN | POLLOUT)

#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define SW_SYNC		"/sys/kernel/debug/sync/sw_sync"

/* The ioctls of sw_sync have no header. */
struct sw_sync_create_fence_data {
	__u32	value;
	char	name[32];
	__s32	fence;
};

#define SW_SYNC_IOC_CREATE_FENCE	_IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC			_IOW('W', 1, __u32)

/* What an ioctl returns, or -errno. */
static int do_ioctl(int fd, unsigned long cmd, const void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

/*
 * Buffers
 */

struct exporter {
	const char *dev;
	const char *exp_name;
	int (*alloc)(int dev, size_t size);
};

static int system_heap_alloc(int dev, size_t size)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	int ret = do_ioctl(dev, DMA_HEAP_IOCTL_ALLOC, &data);

	return ret < 0 ? ret : (int)data.fd;
}

static int udmabuf_alloc(int dev, size_t size)
{
	struct udmabuf_create create = {
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = size,
	};
	int memfd, ret = -EINVAL;

	memfd = memfd_create("dmabuf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memfd < 0)
		return -errno;

	if (!ftruncate(memfd, size) && !fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)) {
		create.memfd = memfd;
		ret = do_ioctl(dev, UDMABUF_CREATE, &create);
	}
	close(memfd);

	return ret;
}

static int rust_sample_alloc(int dev, size_t size)
{
	__u64 bytes = size;

	return do_ioctl(dev, RUST_DMA_BUF_ALLOC, &bytes);
}

static const struct exporter exporter_system_heap = {
	.dev = "/dev/dma_heap/system",
	.exp_name = "system",
	.alloc = system_heap_alloc,
};

static const struct exporter exporter_udmabuf = {
	.dev = "/dev/udmabuf",
	.exp_name = "udmabuf",
	.alloc = udmabuf_alloc,
};

static const struct exporter exporter_rust_sample = {
	.dev = "/dev/rust-dma-buf",
	.exp_name = "rust_dma_buf",
	.alloc = rust_sample_alloc,
};

struct buffer {
	const struct exporter *exporter;
	size_t size;
	int dev;
	int fd;
};

static int alloc_another(const struct buffer *buf)
{
	return buf->exporter->alloc(buf->dev, buf->size);
}

static void setup_buffer(struct __test_metadata *_metadata, struct buffer *buf,
			 const struct exporter *exporter)
{
	buf->exporter = exporter;
	buf->size = NUM_PAGES * getpagesize();
	buf->fd = -1;
	buf->dev = open(exporter->dev, O_RDWR | O_CLOEXEC);
	if (buf->dev < 0)
		SKIP(return, "%s: %s", exporter->dev, strerror(errno));

	buf->fd = alloc_another(buf);
	ASSERT_GE(buf->fd, 0);
}

static void teardown_buffer(struct buffer *buf)
{
	if (buf->fd >= 0)
		close(buf->fd);
	close(buf->dev);
}

static unsigned long long inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

static int set_name(int fd, const char *name)
{
	return do_ioctl(fd, DMA_BUF_SET_NAME_B, name);
}

static int cpu_access(int fd, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return do_ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
}

static unsigned char *map(int fd, size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

/* What mmap() says: 0 or -errno. Nothing stays mapped. */
static int try_map(int fd, size_t size, int prot, off_t offset)
{
	void *addr = mmap(NULL, size, prot, MAP_SHARED, fd, offset);

	if (addr == MAP_FAILED)
		return -errno;
	munmap(addr, size);

	return 0;
}

/* The events, of those asked for, that have happened. */
static int poll_now(int fd, short events)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	return poll(&pfd, 1, 0) < 0 ? -errno : pfd.revents;
}

/*
 * Text of the kernel
 */

/* Returns whether all of it fitted. */
static bool read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n = -1;

	if (fd >= 0) {
		while ((n = read(fd, text + len, size - 1 - len)) > 0)
			len += n;
		close(fd);
	}
	text[len] = '\0';

	return n == 0 && len < size - 1;
}

/* The lines of fdinfo that are the buffer's own. */
static const char *read_fdinfo(int fd)
{
	static char text[1024];
	char path[64];
	char *own;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if (!read_text(path, text, sizeof(text)))
		return "unreadable";
	own = strstr(text, "size:\t");

	return own ? own : text;
}

/* What read_fdinfo() has to return. No name is NULL. */
static const char *expected_fdinfo(const struct buffer *buf, const char *name)
{
	static char text[1024];
	int len;

	len = snprintf(text, sizeof(text), "size:\t%zu\ncount:\t1\nexp_name:\t%s\n",
		       buf->size, buf->exporter->exp_name);
	if (name)
		snprintf(text + len, sizeof(text) - len, "name:\t%s\n", name);

	return text;
}

static long fdinfo_count(int fd)
{
	const char *line = strstr(read_fdinfo(fd), "count:\t");
	long count;

	return line && sscanf(line, "count:\t%ld", &count) == 1 ? count : -1;
}

/* Where /proc/self/fd/N points to. */
static const char *fd_link(int fd)
{
	static char target[256];
	char path[64];
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	len = readlink(path, target, sizeof(target) - 1);
	target[len < 0 ? 0 : len] = '\0';

	return target;
}

/* The path of the mapping at addr, as /proc/self/maps has it. */
static const char *maps_path(void *addr)
{
	static char line[512];
	const char *path = "no such mapping";
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long start;

	if (!maps)
		return "unreadable";
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-", &start) != 1 || start != (unsigned long)addr)
			continue;
		line[strcspn(line, "\n")] = '\0';
		path = strchr(line, '/');
		break;
	}
	fclose(maps);

	return path ? path : "no path";
}

static char bufinfo[1 << 20];

static bool read_bufinfo(void)
{
	return read_text(BUFINFO, bufinfo, sizeof(bufinfo));
}

struct bufinfo_row {
	const char *text;
	size_t size;
	unsigned int flags;
	unsigned int mode;
	long count;
	char exp_name[64];
	unsigned long long ino;
	char name[64];
};

/* Take apart the line at text. Returns whether it is the row of a buffer. */
static bool parse_row(const char *text, struct bufinfo_row *row)
{
	row->text = text;

	/* A name may be empty. */
	return sscanf(text, "%zu %x %x %ld %63[^\t] %llu %63[^\n]", &row->size,
		      &row->flags, &row->mode, &row->count, row->exp_name,
		      &row->ino, row->name) >= 6;
}

static const char *next_line(const char *text)
{
	text = strchr(text, '\n');

	return text ? text + 1 : NULL;
}

/* The row of a buffer in what read_bufinfo() has read. */
static bool find_row(unsigned long long ino, struct bufinfo_row *row)
{
	const char *line;

	for (line = bufinfo; line; line = next_line(line)) {
		if (parse_row(line, row) && row->ino == ino)
			return true;
	}

	return false;
}

static bool starts_with(const char *text, const char *start)
{
	return text && !strncmp(text, start, strlen(start));
}

/*
 * Fences
 */

/* A sync file, or -errno. */
static int export_sync_file(int fd, __u32 flags)
{
	struct dma_buf_export_sync_file arg = { .flags = flags, .fd = -1 };
	int ret = do_ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &arg);

	return ret < 0 ? ret : arg.fd;
}

static int import_sync_file(int fd, __u32 flags, int sync_file)
{
	struct dma_buf_import_sync_file arg = { .flags = flags, .fd = sync_file };

	return do_ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg);
}

/* 0 for pending, 1 for signalled, or an error. */
static int sync_file_status(int sync_file)
{
	struct sync_file_info info = {};
	int ret = do_ioctl(sync_file, SYNC_IOC_FILE_INFO, &info);

	return ret < 0 ? ret : info.status;
}

static int sync_file_num_fences(int sync_file)
{
	struct sync_file_info info = {};
	int ret = do_ioctl(sync_file, SYNC_IOC_FILE_INFO, &info);

	return ret < 0 ? ret : (int)info.num_fences;
}

/* An array of fences signals a moment after the last of them. */
static bool sync_file_signals(int sync_file)
{
	struct pollfd pfd = { .fd = sync_file, .events = POLLIN };

	return poll(&pfd, 1, TIMEOUT * 1000) == 1 && pfd.revents == POLLIN &&
	       sync_file_status(sync_file) == 1;
}

static int merge_sync_files(int a, int b)
{
	struct sync_merge_data data = { .name = "merged", .fd2 = b };
	int ret = do_ioctl(a, SYNC_IOC_MERGE, &data);

	return ret < 0 ? ret : data.fence;
}

/* A sync file with a fence that signals when the timeline gets to value. */
static int create_fence(int timeline, __u32 value)
{
	struct sw_sync_create_fence_data data = { .value = value, .name = "fence" };
	int ret = do_ioctl(timeline, SW_SYNC_IOC_CREATE_FENCE, &data);

	return ret < 0 ? ret : data.fence;
}

static int advance(int timeline)
{
	__u32 by = 1;

	return do_ioctl(timeline, SW_SYNC_IOC_INC, &by);
}

/* Give the buffer a fence that signals when the timeline gets to value. */
static int add_fence(int fd, __u32 flags, int timeline, __u32 value)
{
	int sync_file, ret;

	sync_file = create_fence(timeline, value);
	if (sync_file < 0)
		return sync_file;
	ret = import_sync_file(fd, flags, sync_file);
	close(sync_file);

	return ret;
}

/*
 * Children
 */

/* The child dies rather than hang. */
static pid_t fork_child(void)
{
	pid_t pid = fork();

	if (!pid)
		alarm(TIMEOUT);

	return pid;
}

/* Wait for the child's end. Returns whether it exited with 0. */
static bool child_succeeds(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status);
}

/* Wait until the child sleeps. Returns false if it ends, or never sleeps. */
static bool child_sleeps(pid_t pid)
{
	char path[64], text[512];
	const char *state;
	int i;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (i = 0; i < TIMEOUT * 100; i++) {
		if (!read_text(path, text, sizeof(text)))
			return false;
		state = strrchr(text, ')');
		if (!state || starts_with(state, ") Z"))
			return false;
		if (starts_with(state, ") S"))
			return true;
		usleep(10000);
	}

	return false;
}

/* A child that polls for as long as it takes and wants some of the events. */
static pid_t fork_poller(int fd, short events)
{
	struct pollfd pfd = { .fd = fd, .events = events };
	pid_t pid = fork_child();

	if (!pid)
		_exit(poll(&pfd, 1, -1) != 1 || !pfd.revents || pfd.revents & ~events);

	return pid;
}

/* A child that starts an access, which has to return 0. */
static pid_t fork_cpu_access(int fd, __u64 flags)
{
	pid_t pid = fork_child();

	if (!pid)
		_exit(cpu_access(fd, flags) != 0);

	return pid;
}

/*
 * The buffer on its own
 */

FIXTURE(dmabuf) {
	struct buffer buf;
};

FIXTURE_VARIANT(dmabuf) {
	const struct exporter *exporter;
};

FIXTURE_VARIANT_ADD(dmabuf, system_heap) {
	.exporter = &exporter_system_heap,
};

FIXTURE_VARIANT_ADD(dmabuf, udmabuf) {
	.exporter = &exporter_udmabuf,
};

FIXTURE_VARIANT_ADD(dmabuf, rust_sample) {
	.exporter = &exporter_rust_sample,
};

FIXTURE_SETUP(dmabuf)
{
	setup_buffer(_metadata, &self->buf, variant->exporter);
}

FIXTURE_TEARDOWN(dmabuf)
{
	teardown_buffer(&self->buf);
}

TEST_F(dmabuf, llseek)
{
	EXPECT_EQ(self->buf.size, lseek(self->buf.fd, 0, SEEK_END));
	EXPECT_EQ(0, lseek(self->buf.fd, 0, SEEK_SET));
}

TEST_F(dmabuf, llseek_invalid)
{
	static const struct {
		off_t offset;
		int whence;
	} seeks[] = {
		{ 0, SEEK_CUR }, { 1, SEEK_CUR }, { 1, SEEK_SET }, { -1, SEEK_SET },
		{ 1, SEEK_END }, { -1, SEEK_END }, { 0, SEEK_DATA }, { 0, SEEK_HOLE },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(seeks); i++) {
		errno = 0;
		EXPECT_EQ(-1, lseek(self->buf.fd, seeks[i].offset, seeks[i].whence));
		EXPECT_EQ(EINVAL, errno) TH_LOG("seek %d", i);
	}
}

TEST_F(dmabuf, read_write)
{
	char byte = 0;

	EXPECT_EQ(-1, read(self->buf.fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	errno = 0;
	EXPECT_EQ(-1, write(self->buf.fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(dmabuf, stat)
{
	struct stat st;

	ASSERT_EQ(0, fstat(self->buf.fd, &st));
	EXPECT_EQ(self->buf.size, st.st_size);
	EXPECT_EQ(self->buf.size / 512, st.st_blocks);
}

TEST_F(dmabuf, stat_inode)
{
	int other = alloc_another(&self->buf);

	ASSERT_GE(other, 0);
	EXPECT_NE(0, inode_of(self->buf.fd));
	EXPECT_NE(inode_of(self->buf.fd), inode_of(other));
	close(other);
}

TEST_F(dmabuf, statfs)
{
	struct statfs st;

	ASSERT_EQ(0, fstatfs(self->buf.fd, &st));
	EXPECT_EQ(DMA_BUF_MAGIC, st.f_type);
}

TEST_F(dmabuf, ioctl_unknown)
{
	char arg[64] = {};

	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IO(DMA_BUF_BASE, 0x7f), arg));
	/* The right number, but not the size or the direction. */
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(DMA_BUF_BASE, 0, __u32), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOR(DMA_BUF_BASE, 0, __u64), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(DMA_BUF_BASE, 1, __u16), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(DMA_BUF_BASE, 2, __u64), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOWR(DMA_BUF_BASE, 3, __u64), arg));
}

/*
 * Each test that starts an access begins with both directions: udmabuf maps
 * the buffer for the first that it sees, and the kernel's DMA API debugging
 * would not like the other one. It also refuses an end before any start.
 */
TEST_F(dmabuf, sync)
{
	static const __u64 directions[] = {
		DMA_BUF_SYNC_RW, DMA_BUF_SYNC_READ, DMA_BUF_SYNC_WRITE,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(directions); i++) {
		EXPECT_EQ(0, cpu_access(self->buf.fd, directions[i] | DMA_BUF_SYNC_START));
		EXPECT_EQ(0, cpu_access(self->buf.fd, directions[i] | DMA_BUF_SYNC_END));
	}
}

TEST_F(dmabuf, sync_invalid)
{
	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_START));
	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_END));
	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | 8));
	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | 1ULL << 32));
	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | 1ULL << 63));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_IOCTL_SYNC, BAD_PTR));
}

TEST_F(dmabuf, fdinfo)
{
	EXPECT_STREQ(expected_fdinfo(&self->buf, NULL), read_fdinfo(self->buf.fd));
}

TEST_F(dmabuf, fdinfo_count)
{
	void *addr;
	int fd;

	fd = dup(self->buf.fd);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(2, fdinfo_count(self->buf.fd));
	addr = map(fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_EQ(3, fdinfo_count(self->buf.fd));
	close(fd);
	EXPECT_EQ(2, fdinfo_count(self->buf.fd));
	munmap(addr, self->buf.size);
	EXPECT_EQ(1, fdinfo_count(self->buf.fd));
}

TEST_F(dmabuf, name_length)
{
	static const unsigned long cmds[] = { DMA_BUF_SET_NAME_A, DMA_BUF_SET_NAME_B };
	char name[DMA_BUF_NAME_LEN + 1];
	int i;

	for (i = 0; i < ARRAY_SIZE(cmds); i++) {
		memset(name, 'a' + i, sizeof(name));
		name[DMA_BUF_NAME_LEN] = '\0';
		EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, cmds[i], name));
		name[DMA_BUF_NAME_LEN - 1] = '\0';
		EXPECT_EQ(0, do_ioctl(self->buf.fd, cmds[i], name));
		EXPECT_STREQ(expected_fdinfo(&self->buf, name), read_fdinfo(self->buf.fd));
	}
}

TEST_F(dmabuf, name_survives_errors)
{
	char name[DMA_BUF_NAME_LEN + 1] = {};

	memset(name, 'x', DMA_BUF_NAME_LEN);
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_A, name));
	EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_B, name));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_A, BAD_PTR));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_B, BAD_PTR));
	EXPECT_STREQ(expected_fdinfo(&self->buf, "frame"), read_fdinfo(self->buf.fd));
}

TEST_F(dmabuf, name_shows)
{
	void *addr = map(self->buf.fd, self->buf.size);

	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_STREQ("/dmabuf:", fd_link(self->buf.fd));
	EXPECT_STREQ("/dmabuf:", maps_path(addr));

	ASSERT_EQ(0, set_name(self->buf.fd, "first"));
	EXPECT_STREQ("/dmabuf:first", fd_link(self->buf.fd));
	EXPECT_STREQ("/dmabuf:first", maps_path(addr));

	ASSERT_EQ(0, set_name(self->buf.fd, "the second"));
	EXPECT_STREQ("/dmabuf:the second", fd_link(self->buf.fd));
	EXPECT_STREQ("/dmabuf:the second", maps_path(addr));

	munmap(addr, self->buf.size);
	EXPECT_STREQ(expected_fdinfo(&self->buf, "the second"), read_fdinfo(self->buf.fd));
}

TEST_F(dmabuf, name_empty)
{
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	ASSERT_EQ(0, set_name(self->buf.fd, ""));
	EXPECT_STREQ(expected_fdinfo(&self->buf, ""), read_fdinfo(self->buf.fd));
	EXPECT_STREQ("/dmabuf:", fd_link(self->buf.fd));
}

TEST_F(dmabuf, mmap)
{
	unsigned char *a, *b;
	size_t i;

	a = map(self->buf.fd, self->buf.size);
	b = map(self->buf.fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, a);
	ASSERT_NE(MAP_FAILED, b);
	for (i = 0; i < self->buf.size; i++)
		a[i] = i % 251;
	for (i = 0; i < self->buf.size && b[i] == i % 251; i++)
		;
	EXPECT_EQ(self->buf.size, i);
	munmap(a, self->buf.size);
	munmap(b, self->buf.size);
}

TEST_F(dmabuf, mmap_part)
{
	size_t page = getpagesize();
	size_t offset = self->buf.size - page;
	unsigned char *whole, *last;

	whole = map(self->buf.fd, self->buf.size);
	last = mmap(NULL, page, PROT_READ, MAP_SHARED, self->buf.fd, offset);
	ASSERT_NE(MAP_FAILED, whole);
	ASSERT_NE(MAP_FAILED, last);
	whole[offset] = 0x5a;
	EXPECT_EQ(0x5a, last[0]);
	munmap(whole, self->buf.size);
	munmap(last, page);
}

TEST_F(dmabuf, mmap_outside)
{
	size_t page = getpagesize(), size = self->buf.size;

	EXPECT_EQ(-EINVAL, try_map(self->buf.fd, size + page, PROT_READ, 0));
	EXPECT_EQ(-EINVAL, try_map(self->buf.fd, size, PROT_READ, page));
	EXPECT_EQ(-EINVAL, try_map(self->buf.fd, page, PROT_READ, size));
	EXPECT_EQ(-EINVAL, try_map(self->buf.fd, page, PROT_READ, size * 1024));
}

TEST_F(dmabuf, mmap_exec)
{
	void *addr;

	EXPECT_EQ(-EPERM, try_map(self->buf.fd, self->buf.size, PROT_READ | PROT_EXEC, 0));

	addr = map(self->buf.fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_EQ(-1, mprotect(addr, self->buf.size, PROT_READ | PROT_EXEC));
	EXPECT_EQ(EACCES, errno);
	munmap(addr, self->buf.size);
}

TEST_F(dmabuf, mmap_outlives_fd)
{
	unsigned char *addr = map(self->buf.fd, self->buf.size);

	ASSERT_NE(MAP_FAILED, addr);
	addr[0] = 0x5a;
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	close(self->buf.fd);
	self->buf.fd = -1;
	EXPECT_EQ(0x5a, addr[0]);
	addr[self->buf.size - 1] = 0xa5;
	EXPECT_EQ(0xa5, addr[self->buf.size - 1]);
	EXPECT_STREQ("/dmabuf:frame", maps_path(addr));
	munmap(addr, self->buf.size);
}

TEST_F(dmabuf, dup)
{
	unsigned long long ino = inode_of(self->buf.fd);
	int fd = dup(self->buf.fd);

	ASSERT_GE(fd, 0);
	EXPECT_EQ(ino, inode_of(fd));
	close(self->buf.fd);
	self->buf.fd = fd;
	EXPECT_EQ(ino, inode_of(fd));
	EXPECT_EQ(0, try_map(fd, self->buf.size, PROT_READ | PROT_WRITE, 0));
}

TEST_F(dmabuf, fork)
{
	unsigned long long ino = inode_of(self->buf.fd);
	unsigned char *addr;
	pid_t child;

	addr = map(self->buf.fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, addr);
	addr[0] = 0;
	child = fork_child();
	ASSERT_GE(child, 0);
	if (!child) {
		addr[0] = 0x5a;
		_exit(inode_of(self->buf.fd) != ino);
	}
	EXPECT_TRUE(child_succeeds(child));
	EXPECT_EQ(0x5a, addr[0]);
	munmap(addr, self->buf.size);
}

static bool send_fd(int sock, int fd, unsigned long long ino)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = { .iov_base = &ino, .iov_len = sizeof(ino) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));

	return sendmsg(sock, &msg, 0) == sizeof(ino);
}

static int receive_fd(int sock, unsigned long long *ino)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = { .iov_base = ino, .iov_len = sizeof(*ino) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != sizeof(*ino) ||
	    control.header.cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));

	return fd;
}

/* In a child: send a new buffer, of which the parent knows nothing. */
static int send_buffer(const struct buffer *buf, int sock)
{
	int fd = alloc_another(buf);
	unsigned char *addr = map(fd, buf->size);

	if (fd < 0 || addr == MAP_FAILED || set_name(fd, "sent"))
		return 1;
	addr[0] = 0x5a;

	return !send_fd(sock, fd, inode_of(fd));
}

TEST_F(dmabuf, unix_socket)
{
	unsigned long long ino = 0;
	unsigned char *addr;
	int socks[2], fd;
	pid_t child;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks));
	child = fork_child();
	ASSERT_GE(child, 0);
	if (!child)
		_exit(send_buffer(&self->buf, socks[1]));
	ASSERT_TRUE(child_succeeds(child));

	/* By now only the message holds the buffer. */
	fd = receive_fd(socks[0], &ino);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(ino, inode_of(fd));
	EXPECT_STREQ(expected_fdinfo(&self->buf, "sent"), read_fdinfo(fd));
	addr = map(fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_EQ(0x5a, addr[0]);
	munmap(addr, self->buf.size);
	close(fd);
	close(socks[0]);
	close(socks[1]);
}

TEST_F(dmabuf, poll_idle)
{
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	EXPECT_EQ(POLLIN, poll_now(self->buf.fd, POLLIN));
	EXPECT_EQ(POLLOUT, poll_now(self->buf.fd, POLLOUT));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLLPRI));
	EXPECT_EQ(0, poll_now(self->buf.fd, 0));
}

TEST_F(dmabuf, export_sync_file_invalid)
{
	EXPECT_EQ(-EINVAL, export_sync_file(self->buf.fd, 0));
	EXPECT_EQ(-EINVAL, export_sync_file(self->buf.fd, DMA_BUF_SYNC_END));
	EXPECT_EQ(-EINVAL, export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
	EXPECT_EQ(-EINVAL, export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW | 1U << 31));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, BAD_PTR));
}

TEST_F(dmabuf, export_sync_file_idle)
{
	__u32 flags;
	int fd;

	for (flags = DMA_BUF_SYNC_READ; flags <= DMA_BUF_SYNC_RW; flags++) {
		fd = export_sync_file(self->buf.fd, flags);
		ASSERT_GE(fd, 0);
		EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
		EXPECT_EQ(POLLIN, poll_now(fd, POLLIN));
		EXPECT_EQ(1, sync_file_status(fd));
		close(fd);
	}
}

/* The descriptor that the next open() would return. */
static int lowest_free_fd(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	close(fd);

	return fd;
}

TEST_F(dmabuf, export_sync_file_read_only_argument)
{
	int before = lowest_free_fd();
	struct dma_buf_export_sync_file *arg;

	arg = mmap(NULL, sizeof(*arg), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, arg);
	arg->flags = DMA_BUF_SYNC_RW;
	ASSERT_EQ(0, mprotect(arg, sizeof(*arg), PROT_READ));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, arg));
	EXPECT_EQ(before, lowest_free_fd());
	munmap(arg, sizeof(*arg));
}

TEST_F(dmabuf, export_sync_file_no_free_fd)
{
	struct rlimit limit, lower;
	int fd;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	lower = limit;
	lower.rlim_cur = lowest_free_fd();
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lower));
	EXPECT_EQ(-EMFILE, export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));

	EXPECT_STREQ(expected_fdinfo(&self->buf, NULL), read_fdinfo(self->buf.fd));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	EXPECT_EQ(lower.rlim_cur, fd);
	close(fd);
}

TEST_F(dmabuf, import_sync_file_invalid)
{
	int fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);

	ASSERT_GE(fd, 0);
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, 0, fd));
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_END, fd));
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END, fd));
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW | 1U << 31, fd));
	/* Not a sync file, not a file. */
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, self->buf.fd));
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, -1));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, BAD_PTR));
	close(fd);
}

TEST_F(dmabuf, import_sync_file_signalled)
{
	int fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	__u32 flags;

	ASSERT_GE(fd, 0);
	for (flags = DMA_BUF_SYNC_READ; flags <= DMA_BUF_SYNC_RW; flags++)
		EXPECT_EQ(0, import_sync_file(self->buf.fd, flags, fd));
	close(fd);
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	EXPECT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	EXPECT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
}

/*
 * The buffer with fences, of the timelines a and b
 */

FIXTURE(fence) {
	struct buffer buf;
	int a, b;
};

FIXTURE_VARIANT(fence) {
	const struct exporter *exporter;
};

FIXTURE_VARIANT_ADD(fence, system_heap) {
	.exporter = &exporter_system_heap,
};

FIXTURE_VARIANT_ADD(fence, udmabuf) {
	.exporter = &exporter_udmabuf,
};

FIXTURE_VARIANT_ADD(fence, rust_sample) {
	.exporter = &exporter_rust_sample,
};

FIXTURE_SETUP(fence)
{
	self->a = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	if (self->a < 0)
		SKIP(return, SW_SYNC ": %s", strerror(errno));
	self->b = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->b, 0);
	setup_buffer(_metadata, &self->buf, variant->exporter);
}

/* A timeline that closes signals what is left of its fences. */
FIXTURE_TEARDOWN(fence)
{
	close(self->a);
	close(self->b);
	teardown_buffer(&self->buf);
}

TEST_F(fence, write)
{
	__u32 flags, value;

	for (flags = DMA_BUF_SYNC_WRITE; flags <= DMA_BUF_SYNC_RW; flags++) {
		value = flags - DMA_BUF_SYNC_WRITE + 1;
		ASSERT_EQ(0, add_fence(self->buf.fd, flags, self->a, value));
		EXPECT_EQ(0, poll_now(self->buf.fd, POLLIN));
		EXPECT_EQ(0, poll_now(self->buf.fd, POLLOUT));
		ASSERT_EQ(0, advance(self->a));
		EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	}
}

TEST_F(fence, read)
{
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->a, 1));
	EXPECT_EQ(POLLIN, poll_now(self->buf.fd, POLL_RW));
	EXPECT_EQ(POLLIN, poll_now(self->buf.fd, POLLIN));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLLOUT));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

TEST_F(fence, write_and_read)
{
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->b, 1));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(POLLIN, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, advance(self->b));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

TEST_F(fence, two_writes)
{
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->b, 1));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, advance(self->b));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

/* A merged sync file is imported as the fences that it has. */
TEST_F(fence, merged)
{
	int a, b, merged, exported;

	a = create_fence(self->a, 1);
	b = create_fence(self->b, 1);
	ASSERT_GE(a, 0);
	ASSERT_GE(b, 0);
	merged = merge_sync_files(a, b);
	ASSERT_GE(merged, 0);
	ASSERT_EQ(0, import_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE, merged));
	close(a);
	close(b);
	close(merged);

	exported = export_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE);
	ASSERT_GE(exported, 0);
	EXPECT_EQ(2, sync_file_num_fences(exported));
	close(exported);

	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, advance(self->b));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

TEST_F(fence, export_write)
{
	__u32 flags;
	int fd[DMA_BUF_SYNC_RW + 1];

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	for (flags = DMA_BUF_SYNC_READ; flags <= DMA_BUF_SYNC_RW; flags++) {
		fd[flags] = export_sync_file(self->buf.fd, flags);
		ASSERT_GE(fd[flags], 0);
		EXPECT_EQ(0, sync_file_status(fd[flags]));
		EXPECT_EQ(0, poll_now(fd[flags], POLLIN));
	}
	ASSERT_EQ(0, advance(self->a));
	for (flags = DMA_BUF_SYNC_READ; flags <= DMA_BUF_SYNC_RW; flags++) {
		EXPECT_TRUE(sync_file_signals(fd[flags]));
		close(fd[flags]);
	}
}

TEST_F(fence, export_read)
{
	int read, write;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->a, 1));
	read = export_sync_file(self->buf.fd, DMA_BUF_SYNC_READ);
	write = export_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE);
	ASSERT_GE(read, 0);
	ASSERT_GE(write, 0);
	EXPECT_EQ(1, sync_file_status(read));
	EXPECT_EQ(0, sync_file_status(write));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_TRUE(sync_file_signals(write));
	close(read);
	close(write);
}

TEST_F(fence, export_two)
{
	int fd;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->b, 1));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(2, sync_file_num_fences(fd));
	EXPECT_EQ(0, poll_now(fd, POLLIN));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(0, poll_now(fd, POLLIN));
	ASSERT_EQ(0, advance(self->b));
	EXPECT_TRUE(sync_file_signals(fd));
	close(fd);
}

/* A sync file stays as it is when the buffer gets another fence. */
TEST_F(fence, export_is_a_snapshot)
{
	int fd;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_READ);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->b, 1));
	EXPECT_EQ(1, sync_file_num_fences(fd));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_TRUE(sync_file_signals(fd));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	close(fd);
}

TEST_F(fence, poll_wakes)
{
	static const short events[] = { POLLIN, POLLOUT, POLL_RW };
	pid_t child;
	int i;

	for (i = 0; i < ARRAY_SIZE(events); i++) {
		ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, i + 1));
		child = fork_poller(self->buf.fd, events[i]);
		ASSERT_GE(child, 0);
		EXPECT_TRUE(child_sleeps(child));
		ASSERT_EQ(0, advance(self->a));
		EXPECT_TRUE(child_succeeds(child));
		EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	}
}

TEST_F(fence, poll_waits_for_all_fences)
{
	pid_t child;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->b, 1));
	child = fork_poller(self->buf.fd, POLL_RW);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_sleeps(child));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_TRUE(child_sleeps(child));
	ASSERT_EQ(0, advance(self->b));
	EXPECT_TRUE(child_succeeds(child));
}

TEST_F(fence, poll_wakes_all_pollers)
{
	static const short events[] = {
		POLL_RW, POLLIN, POLLOUT, POLLIN, POLLOUT, POLL_RW,
	};
	pid_t child[ARRAY_SIZE(events)];
	int i;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	for (i = 0; i < ARRAY_SIZE(events); i++) {
		child[i] = fork_poller(self->buf.fd, events[i]);
		ASSERT_GE(child[i], 0);
		EXPECT_TRUE(child_sleeps(child[i]));
	}
	ASSERT_EQ(0, advance(self->a));
	for (i = 0; i < ARRAY_SIZE(events); i++)
		EXPECT_TRUE(child_succeeds(child[i]));
}

TEST_F(fence, epoll_level_triggered)
{
	struct epoll_event event = { .events = EPOLLIN }, got = {};
	int ep = epoll_create1(EPOLL_CLOEXEC);

	ASSERT_GE(ep, 0);
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, self->buf.fd, &event));
	EXPECT_EQ(0, epoll_wait(ep, &got, 1, 0));

	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(1, epoll_wait(ep, &got, 1, TIMEOUT * 1000));
	EXPECT_EQ(EPOLLIN, got.events);
	EXPECT_EQ(1, epoll_wait(ep, &got, 1, TIMEOUT * 1000));

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->b, 1));
	EXPECT_EQ(0, epoll_wait(ep, &got, 1, 0));
	ASSERT_EQ(0, advance(self->b));
	EXPECT_EQ(1, epoll_wait(ep, &got, 1, TIMEOUT * 1000));
	close(ep);
}

/* What is left after the last descriptor went while poll() awaits a fence. */
TEST_F(fence, close_while_polled)
{
	unsigned long long ino = inode_of(self->buf.fd);
	struct bufinfo_row row;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	close(self->buf.fd);
	ASSERT_EQ(0, advance(self->a));
	ASSERT_TRUE(read_bufinfo());
	EXPECT_FALSE(find_row(ino, &row));

	self->buf.fd = alloc_another(&self->buf);
	ASSERT_GE(self->buf.fd, 0);
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

TEST_F(fence, close_while_epolled)
{
	struct epoll_event event = { .events = EPOLLIN };
	unsigned long long ino = inode_of(self->buf.fd);
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct bufinfo_row row;

	ASSERT_GE(ep, 0);
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, self->buf.fd, &event));
	close(self->buf.fd);
	EXPECT_EQ(0, epoll_wait(ep, &event, 1, 0));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(0, epoll_wait(ep, &event, 1, 0));
	ASSERT_TRUE(read_bufinfo());
	EXPECT_FALSE(find_row(ino, &row));

	/* The epoll file goes on with another buffer. */
	self->buf.fd = alloc_another(&self->buf);
	ASSERT_GE(self->buf.fd, 0);
	event.events = EPOLLIN;
	ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, self->buf.fd, &event));
	EXPECT_EQ(1, epoll_wait(ep, &event, 1, TIMEOUT * 1000));
	close(ep);
}

TEST_F(fence, sync_waits_for_write)
{
	__u32 direction;
	pid_t child;

	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	for (direction = DMA_BUF_SYNC_READ; direction <= DMA_BUF_SYNC_RW; direction++) {
		ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, direction));
		child = fork_cpu_access(self->buf.fd, direction | DMA_BUF_SYNC_START);
		ASSERT_GE(child, 0);
		EXPECT_TRUE(child_sleeps(child));
		ASSERT_EQ(0, advance(self->a));
		EXPECT_TRUE(child_succeeds(child));
	}
}

TEST_F(fence, sync_write_waits_for_read)
{
	pid_t child;

	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->a, 1));
	child = fork_cpu_access(self->buf.fd, DMA_BUF_SYNC_READ | DMA_BUF_SYNC_START);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_succeeds(child));

	child = fork_cpu_access(self->buf.fd, DMA_BUF_SYNC_WRITE | DMA_BUF_SYNC_START);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_sleeps(child));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_TRUE(child_succeeds(child));
}

TEST_F(fence, sync_end_does_not_wait)
{
	pid_t child;

	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	child = fork_cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_succeeds(child));
}

static void ignore_signal(int sig)
{
}

TEST_F(fence, sync_interrupted)
{
	struct sigaction action = { .sa_handler = ignore_signal };
	struct itimerval ticks = {
		.it_interval.tv_usec = 50000,
		.it_value.tv_usec = 50000,
	};

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &ticks, NULL));
	EXPECT_EQ(-EINTR, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	memset(&ticks, 0, sizeof(ticks));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &ticks, NULL));

	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	EXPECT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
}

TEST_F(fence, sync_restarted)
{
	struct sigaction action = { .sa_handler = ignore_signal, .sa_flags = SA_RESTART };
	pid_t child;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, sigaction(SIGUSR1, &action, NULL));
	child = fork_cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_sleeps(child));
	ASSERT_EQ(0, kill(child, SIGUSR1));
	EXPECT_TRUE(child_sleeps(child));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_TRUE(child_succeeds(child));
}

TEST_F(fence, bufinfo)
{
	struct bufinfo_row row;
	const char *line;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->b, 1));
	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(self->buf.fd), &row));
	line = next_line(row.text);
	EXPECT_TRUE(starts_with(line, "\twrite fence:"));
	line = next_line(line);
	EXPECT_TRUE(starts_with(line, "\tread fence:"));
	line = next_line(line);
	EXPECT_TRUE(starts_with(line, "\tAttached Devices:\n"));
}

/*
 * The list of all buffers
 */

FIXTURE(bufinfo) {
	struct buffer buf;
};

FIXTURE_VARIANT(bufinfo) {
	const struct exporter *exporter;
};

FIXTURE_VARIANT_ADD(bufinfo, system_heap) {
	.exporter = &exporter_system_heap,
};

FIXTURE_VARIANT_ADD(bufinfo, udmabuf) {
	.exporter = &exporter_udmabuf,
};

FIXTURE_VARIANT_ADD(bufinfo, rust_sample) {
	.exporter = &exporter_rust_sample,
};

FIXTURE_SETUP(bufinfo)
{
	if (access(BUFINFO, R_OK))
		SKIP(return, BUFINFO ": %s", strerror(errno));
	setup_buffer(_metadata, &self->buf, variant->exporter);
}

FIXTURE_TEARDOWN(bufinfo)
{
	teardown_buffer(&self->buf);
}

TEST_F(bufinfo, header)
{
	static const char header[] = "\nDma-buf Objects:\n"
		"size    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n";

	ASSERT_TRUE(read_bufinfo());
	EXPECT_TRUE(starts_with(bufinfo, header));
}

/* Check the row of the buffer, and what follows it. */
static void expect_row(struct __test_metadata *_metadata, const struct buffer *buf,
		       long count, const char *name)
{
	char expected[512], seen[512];
	struct bufinfo_row row;

	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(buf->fd), &row));
	/* Of the mode, only that the file is open for reading and writing is ABI. */
	EXPECT_EQ(3, row.mode & 3);
	snprintf(expected, sizeof(expected),
		 "%08zu\t%08x\t%08x\t%08ld\t%s\t%08llu\t%s\n"
		 "\tAttached Devices:\n"
		 "Total 0 devices attached\n"
		 "\n",
		 buf->size, fcntl(buf->fd, F_GETFL), row.mode, count,
		 buf->exporter->exp_name, inode_of(buf->fd), name);
	snprintf(seen, sizeof(seen), "%.*s", (int)strlen(expected), row.text);
	EXPECT_STREQ(expected, seen);
}

TEST_F(bufinfo, named)
{
	ASSERT_EQ(0, set_name(self->buf.fd, "a frame"));
	expect_row(_metadata, &self->buf, 1, "a frame");
}

TEST_F(bufinfo, unnamed)
{
	expect_row(_metadata, &self->buf, 1, "<none>");
}

TEST_F(bufinfo, empty_name)
{
	ASSERT_EQ(0, set_name(self->buf.fd, ""));
	expect_row(_metadata, &self->buf, 1, "");
}

TEST_F(bufinfo, count)
{
	int fd = dup(self->buf.fd);

	ASSERT_GE(fd, 0);
	expect_row(_metadata, &self->buf, 2, "<none>");
	close(fd);
	expect_row(_metadata, &self->buf, 1, "<none>");
}

TEST_F(bufinfo, newest_first)
{
	struct bufinfo_row older, newer;
	int fd = alloc_another(&self->buf);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, set_name(self->buf.fd, "older"));
	ASSERT_EQ(0, set_name(fd, "newer"));
	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(self->buf.fd), &older));
	ASSERT_TRUE(find_row(inode_of(fd), &newer));
	EXPECT_STREQ("older", older.name);
	EXPECT_STREQ("newer", newer.name);
	EXPECT_LT(newer.text, older.text);
	close(fd);
}

TEST_F(bufinfo, total)
{
	const char *line, *last = NULL;
	struct bufinfo_row row;
	char expected[128];
	size_t bytes = 0;
	int count = 0;

	ASSERT_TRUE(read_bufinfo());
	for (line = bufinfo; line && *line; line = next_line(line)) {
		last = line;
		if (parse_row(line, &row)) {
			count++;
			bytes += row.size;
		}
	}
	EXPECT_GE(count, 1);
	snprintf(expected, sizeof(expected), "Total %d objects, %zu bytes\n", count, bytes);
	ASSERT_NE(NULL, last);
	EXPECT_STREQ(expected, last);
}

TEST_F(bufinfo, closed)
{
	unsigned long long ino = inode_of(self->buf.fd);
	struct bufinfo_row row;

	close(self->buf.fd);
	self->buf.fd = -1;
	ASSERT_TRUE(read_bufinfo());
	EXPECT_FALSE(find_row(ino, &row));
}

TEST_HARNESS_MAIN
