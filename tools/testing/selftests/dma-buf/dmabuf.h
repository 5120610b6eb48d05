/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of the dma-buf core share: buffers of several exporters, fences, text of the
 * kernel, and children.
 *
 * Buffers come from the system heap, from udmabuf, from vgem and from the Rust sample, fences from
 * sw_sync.
 *
 * The tests run as any user who may open the devices of the exporters. What is in debugfs or
 * tracefs is for root; its tests are skipped for others.
 *
 * Settings of the machine are saved before main() and restored with atexit(). Only the harness's
 * process comes to that, whatever becomes of a test: children leave with _exit().
 */
#ifndef DMABUF_H
#define DMABUF_H

#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <drm/drm.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
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
static inline int do_ioctl(int fd, unsigned long cmd, const void *arg)
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
	/* For a device whose number is not fixed. */
	int (*open)(void);
	/* The mode is one of open(). Those who take no other than O_RDWR ignore it. */
	int (*alloc)(int dev, size_t size, int mode);
	/* How many descriptors it takes to make one. */
	int fds;
	/* Whether it heeds the offset of a mapping. */
	bool maps_parts;
};

static inline int system_heap_alloc(int dev, size_t size, int mode)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = mode | O_CLOEXEC,
	};
	int ret = do_ioctl(dev, DMA_HEAP_IOCTL_ALLOC, &data);

	return ret < 0 ? ret : (int)data.fd;
}

static inline int udmabuf_alloc(int dev, size_t size, int mode)
{
	struct udmabuf_create create = {
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = size,
	};
	int memfd, ret = -EINVAL;

	(void)mode;
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

static inline int rust_sample_alloc(int dev, size_t size, int mode)
{
	__u64 bytes = size;

	(void)mode;

	return do_ioctl(dev, RUST_DMA_BUF_ALLOC, &bytes);
}

static inline int vgem_open(void)
{
	char path[32], name[8];
	drm_version_t version;
	int i, dev, err = ENOENT;

	for (i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		dev = open(path, O_RDWR | O_CLOEXEC);
		if (dev < 0) {
			if (errno != ENOENT)
				err = errno;
			continue;
		}
		memset(&version, 0, sizeof(version));
		version.name = name;
		version.name_len = sizeof(name);
		if (!ioctl(dev, DRM_IOCTL_VERSION, &version) && version.name_len == 4 &&
		    !memcmp(name, "vgem", 4))
			return dev;
		close(dev);
	}
	errno = err;

	return -1;
}

static inline int vgem_create(int dev, size_t size, __u32 *handle)
{
	struct drm_mode_create_dumb dumb = {
		.width = size / 4,
		.height = 1,
		.bpp = 32,
	};
	int ret = do_ioctl(dev, DRM_IOCTL_MODE_CREATE_DUMB, &dumb);

	*handle = dumb.handle;

	return ret;
}

static inline int vgem_import(int dev, int fd, __u32 *handle)
{
	struct drm_prime_handle prime = { .fd = fd };
	int ret = do_ioctl(dev, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime);

	*handle = prime.handle;

	return ret;
}

static inline int vgem_close(int dev, __u32 handle)
{
	struct drm_gem_close gem = { .handle = handle };

	return do_ioctl(dev, DRM_IOCTL_GEM_CLOSE, &gem);
}

static inline int vgem_alloc(int dev, size_t size, int mode)
{
	struct drm_prime_handle prime = { .flags = DRM_CLOEXEC | mode };
	int ret;

	ret = vgem_create(dev, size, &prime.handle);
	if (ret)
		return ret;
	ret = do_ioctl(dev, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime);
	/* With the handle, vgem would keep references to the buffer. */
	vgem_close(dev, prime.handle);

	return ret < 0 ? ret : prime.fd;
}

static const struct exporter exporter_system_heap = {
	.dev = "/dev/dma_heap/system",
	.exp_name = "system",
	.alloc = system_heap_alloc,
	.fds = 1,
	.maps_parts = true,
};

static const struct exporter exporter_udmabuf = {
	.dev = "/dev/udmabuf",
	.exp_name = "udmabuf",
	.alloc = udmabuf_alloc,
	.fds = 2,
	.maps_parts = true,
};

static const struct exporter exporter_rust_sample = {
	.dev = "/dev/rust-dma-buf",
	.exp_name = "rust_dma_buf",
	.alloc = rust_sample_alloc,
	.fds = 1,
	.maps_parts = true,
};

static const struct exporter exporter_vgem = {
	.dev = "vgem",
	/* The exporter is the library of all DRM drivers. */
	.exp_name = "drm",
	.open = vgem_open,
	.alloc = vgem_alloc,
	.fds = 1,
};

#define EXPORTER_VARIANTS(fixture)				\
FIXTURE_VARIANT(fixture) {					\
	const struct exporter *exporter;			\
};								\
								\
FIXTURE_VARIANT_ADD(fixture, system_heap) {			\
	.exporter = &exporter_system_heap,			\
};								\
								\
FIXTURE_VARIANT_ADD(fixture, udmabuf) {				\
	.exporter = &exporter_udmabuf,				\
};								\
								\
FIXTURE_VARIANT_ADD(fixture, vgem) {				\
	.exporter = &exporter_vgem,				\
};								\
								\
FIXTURE_VARIANT_ADD(fixture, rust_sample) {			\
	.exporter = &exporter_rust_sample,			\
}

struct buffer {
	const struct exporter *exporter;
	size_t size;
	int mode;
	int dev;
	int fd;
};

static inline int alloc_another(const struct buffer *buf)
{
	return buf->exporter->alloc(buf->dev, buf->size, buf->mode);
}

static inline void setup_buffer_mode(struct __test_metadata *_metadata, struct buffer *buf,
				     const struct exporter *exporter, int mode)
{
	buf->exporter = exporter;
	buf->size = NUM_PAGES * getpagesize();
	buf->mode = mode;
	buf->fd = -1;
	buf->dev = exporter->open ? exporter->open() : open(exporter->dev, O_RDWR | O_CLOEXEC);
	if (buf->dev < 0)
		SKIP(return, "%s: %s", exporter->dev, strerror(errno));

	buf->fd = alloc_another(buf);
	ASSERT_GE(buf->fd, 0);
}

static inline void setup_buffer(struct __test_metadata *_metadata, struct buffer *buf,
				const struct exporter *exporter)
{
	setup_buffer_mode(_metadata, buf, exporter, O_RDWR);
}

static void teardown_buffer(struct buffer *buf)
{
	if (buf->fd >= 0)
		close(buf->fd);
	close(buf->dev);
}

static inline unsigned long long inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

static inline int set_name(int fd, const char *name)
{
	return do_ioctl(fd, DMA_BUF_SET_NAME_B, name);
}

static inline int cpu_access(int fd, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return do_ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
}

static inline unsigned char *map(int fd, size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

/* What mmap() says: 0 or -errno. Nothing stays mapped. */
static inline int try_map(int fd, size_t size, int prot, off_t offset)
{
	void *addr = mmap(NULL, size, prot, MAP_SHARED, fd, offset);

	if (addr == MAP_FAILED)
		return -errno;
	munmap(addr, size);

	return 0;
}

/* The events, of those asked for, that have happened. */
static inline int poll_now(int fd, short events)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	return poll(&pfd, 1, 0) < 0 ? -errno : pfd.revents;
}

/*
 * Descriptors in messages
 */

static inline bool send_fd(int sock, int fd, unsigned long long ino)
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

static inline int receive_fd(int sock, unsigned long long *ino)
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

/*
 * Text of the kernel
 */

/* Returns whether all of it fitted. */
static inline bool read_text(const char *path, char *text, size_t size)
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
static inline const char *expected_fdinfo(const struct buffer *buf, const char *name)
{
	static char text[1024];
	int len;

	len = snprintf(text, sizeof(text), "size:\t%zu\ncount:\t1\nexp_name:\t%s\n",
		       buf->size, buf->exporter->exp_name);
	if (name)
		snprintf(text + len, sizeof(text) - len, "name:\t%s\n", name);

	return text;
}

static inline long fdinfo_count(int fd)
{
	const char *line = strstr(read_fdinfo(fd), "count:\t");
	long count;

	return line && sscanf(line, "count:\t%ld", &count) == 1 ? count : -1;
}

/* Where /proc/self/fd/N points to. */
static inline const char *fd_link(int fd)
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
static inline const char *maps_path(void *addr)
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

static inline bool read_bufinfo(void)
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
static inline bool parse_row(const char *text, struct bufinfo_row *row)
{
	row->text = text;

	/* A name may be empty. An empty line is not the row after it. */
	return *text != '\n' &&
	       sscanf(text, "%zu %x %x %ld %63[^\t] %llu %63[^\n]", &row->size,
		      &row->flags, &row->mode, &row->count, row->exp_name,
		      &row->ino, row->name) >= 6;
}

static const char *next_line(const char *text)
{
	text = strchr(text, '\n');

	return text ? text + 1 : NULL;
}

static inline bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);

	return ok;
}

/* For functions of atexit(): the program fails, whatever the tests said. */
static inline void __noreturn fail_at_exit(const char *path)
{
	printf("# %s cannot be restored: %s\n", path, strerror(errno));
	fflush(stdout);
	_exit(KSFT_FAIL);
}

/* The number in the last line of bufinfo: "Total %d objects, ...", or -1. */
static inline int num_buffers(void)
{
	const char *line;
	char what;
	int count;

	if (!read_bufinfo())
		return -1;
	for (line = bufinfo; line; line = next_line(line)) {
		/* Each buffer has a total of devices. */
		if (sscanf(line, "Total %d %c", &count, &what) == 2 && what == 'o')
			return count;
	}

	return -1;
}

/* The row of a buffer in what read_bufinfo() has read. */
static inline bool find_row(unsigned long long ino, struct bufinfo_row *row)
{
	const char *line;

	for (line = bufinfo; line; line = next_line(line)) {
		if (parse_row(line, row) && row->ino == ino)
			return true;
	}

	return false;
}

static inline bool starts_with(const char *text, const char *start)
{
	return text && !strncmp(text, start, strlen(start));
}

/*
 * Fences
 */

/* A sync file, or -errno. */
static inline int export_sync_file(int fd, __u32 flags)
{
	struct dma_buf_export_sync_file arg = { .flags = flags, .fd = -1 };
	int ret = do_ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &arg);

	return ret < 0 ? ret : arg.fd;
}

static inline int import_sync_file(int fd, __u32 flags, int sync_file)
{
	struct dma_buf_import_sync_file arg = { .flags = flags, .fd = sync_file };

	return do_ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg);
}

/* 0 for pending, 1 for signalled, or an error. */
static inline int sync_file_status(int sync_file)
{
	struct sync_file_info info = {};
	int ret = do_ioctl(sync_file, SYNC_IOC_FILE_INFO, &info);

	return ret < 0 ? ret : info.status;
}

static inline int sync_file_num_fences(int sync_file)
{
	struct sync_file_info info = {};
	int ret = do_ioctl(sync_file, SYNC_IOC_FILE_INFO, &info);

	return ret < 0 ? ret : (int)info.num_fences;
}

/* An array of fences signals a moment after the last of them. */
static inline bool sync_file_signals(int sync_file)
{
	struct pollfd pfd = { .fd = sync_file, .events = POLLIN };

	return poll(&pfd, 1, TIMEOUT * 1000) == 1 && pfd.revents == POLLIN &&
	       sync_file_status(sync_file) == 1;
}

/* A sync file with a fence that signals when the timeline gets to value. */
static inline int create_fence(int timeline, __u32 value)
{
	struct sw_sync_create_fence_data data = { .value = value, .name = "fence" };
	int ret = do_ioctl(timeline, SW_SYNC_IOC_CREATE_FENCE, &data);

	return ret < 0 ? ret : data.fence;
}

static inline int advance(int timeline)
{
	__u32 by = 1;

	return do_ioctl(timeline, SW_SYNC_IOC_INC, &by);
}

/* Give the buffer a fence that signals when the timeline gets to value. */
static inline int add_fence(int fd, __u32 flags, int timeline, __u32 value)
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
static inline pid_t fork_child(void)
{
	pid_t pid = fork();

	if (!pid)
		alarm(TIMEOUT);

	return pid;
}

/* Wait for the child's end. Returns whether it exited with 0. */
static inline bool child_succeeds(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status);
}

/* Wait until the child sleeps. Returns false if it ends, or never sleeps. */
static inline bool child_sleeps(pid_t pid)
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
static inline pid_t fork_poller(int fd, short events)
{
	struct pollfd pfd = { .fd = fd, .events = events };
	pid_t pid = fork_child();

	if (!pid)
		_exit(poll(&pfd, 1, -1) != 1 || !pfd.revents || pfd.revents & ~events);

	return pid;
}

/* A child that starts an access, which has to return 0. */
static inline pid_t fork_cpu_access(int fd, __u64 flags)
{
	pid_t pid = fork_child();

	if (!pid)
		_exit(cpu_access(fd, flags) != 0);

	return pid;
}

#endif
