// SPDX-License-Identifier: GPL-2.0
/*
 * The exporter and importer of samples/rust/rust_dma_buf.rs: what the abstractions for drivers in
 * Rust do when user space drives them.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>

#include "kselftest_harness.h"
#include "rust_dma_buf.h"

#define DEV		"/dev/rust-dma-buf"
#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define NUM_PAGES	4

static int do_ioctl(int fd, unsigned long cmd, void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

static int alloc(int dev, __u64 size)
{
	return do_ioctl(dev, RUST_DMA_BUF_ALLOC, &size);
}

/* The sum of the bytes of a buffer, or -errno. */
static long long sum(int dev, int fd)
{
	__u64 arg = fd;
	int ret = do_ioctl(dev, RUST_DMA_BUF_SUM, &arg);

	return ret < 0 ? ret : (long long)arg;
}

static int fill(int dev, int fd, __u64 byte)
{
	__u64 arg[2] = { fd, byte };

	return do_ioctl(dev, RUST_DMA_BUF_FILL, arg);
}

/* The number in the last line of bufinfo: "Total %d objects, ...", or -1. */
static int num_buffers(void)
{
	int number, count = -1;
	char line[256], what;
	FILE *f = fopen(BUFINFO, "re");

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		/* Each buffer has a total of devices. */
		if (sscanf(line, "Total %d %c", &number, &what) == 2 && what == 'o')
			count = number;
	}
	fclose(f);

	return count;
}

FIXTURE(sample) {
	size_t size;
	int dev;
	int fd;
};

FIXTURE_SETUP(sample)
{
	self->size = NUM_PAGES * getpagesize();
	self->fd = -1;
	self->dev = open(DEV, O_RDWR | O_CLOEXEC);
	if (self->dev < 0)
		SKIP(return, DEV ": %s (modprobe rust_dma_buf)", strerror(errno));

	self->fd = alloc(self->dev, self->size);
	ASSERT_GE(self->fd, 0);
}

FIXTURE_TEARDOWN(sample)
{
	if (self->fd >= 0)
		close(self->fd);
	close(self->dev);
}

TEST_F(sample, alloc_bad_size)
{
	EXPECT_EQ(-EINVAL, alloc(self->dev, 0));
	EXPECT_EQ(-ENOMEM, alloc(self->dev, -1ULL));
	EXPECT_EQ(-ENOMEM, alloc(self->dev, 1ULL << 62));
	EXPECT_EQ(-EFAULT, do_ioctl(self->dev, RUST_DMA_BUF_ALLOC, (void *)1));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->dev, _IO('|', 0x9f), NULL));
}

TEST_F(sample, alloc_rounds_up)
{
	int fd = alloc(self->dev, 1);

	ASSERT_GE(fd, 0);
	EXPECT_EQ(getpagesize(), lseek(fd, 0, SEEK_END));
	EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
	close(fd);
}

TEST_F(sample, alloc_zeroed)
{
	EXPECT_EQ(0, sum(self->dev, self->fd));
}

/* Without a descriptor to give it to, there is no buffer. */
TEST_F(sample, alloc_no_descriptor)
{
	struct rlimit limit;
	int before = num_buffers();

	if (before < 0)
		SKIP(return, BUFINFO ": %s", strerror(errno));
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = self->fd + 1;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_EQ(-EMFILE, alloc(self->dev, self->size));
	limit.rlim_cur = limit.rlim_max;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_EQ(before, num_buffers());
}

TEST_F(sample, import_bad_descriptor)
{
	EXPECT_EQ(-EBADF, sum(self->dev, -1));
	EXPECT_EQ(-EINVAL, sum(self->dev, self->dev));
	EXPECT_EQ(-EBADF, fill(self->dev, 1000, 0));
	EXPECT_EQ(-EINVAL, fill(self->dev, self->dev, 0));
	EXPECT_EQ(-EINVAL, fill(self->dev, self->fd, 256));
}

/* What one side writes, the other sees. */
TEST_F(sample, mmap_and_cpu_access)
{
	unsigned char *map;
	size_t i;

	map = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	map[0] = 1;
	map[self->size / 2] = 2;
	map[self->size - 1] = 4;
	EXPECT_EQ(7, sum(self->dev, self->fd));

	ASSERT_EQ(0, fill(self->dev, self->fd, 0xa5));
	for (i = 0; i < self->size && map[i] == 0xa5; i++)
		;
	EXPECT_EQ(self->size, i);
	munmap(map, self->size);
}

TEST_F(sample, mmap_at_offset)
{
	long page = getpagesize();
	unsigned char *map;

	map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, page);
	ASSERT_NE(MAP_FAILED, map);
	memset(map, 1, page);
	munmap(map, page);
	map = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, map[page - 1]);
	EXPECT_EQ(1, map[page]);
	EXPECT_EQ(1, map[2 * page - 1]);
	EXPECT_EQ(0, map[2 * page]);
	munmap(map, self->size);
}

TEST_F(sample, mmap_private)
{
	EXPECT_EQ(MAP_FAILED, mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_PRIVATE,
				   self->fd, 0));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(sample, mmap_beyond)
{
	long page = getpagesize();

	EXPECT_EQ(MAP_FAILED, mmap(NULL, self->size + page, PROT_READ, MAP_SHARED, self->fd, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, page));
	EXPECT_EQ(EINVAL, errno);
}

/* A mapping cannot grow over what it was checked for (CVE-2026-46312). */
TEST_F(sample, mmap_does_not_expand)
{
	void *map;

	map = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(MAP_FAILED, mremap(map, self->size, 2 * self->size, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	munmap(map, self->size);
}

/* The memory lives as long as there is a mapping, without the descriptor and the device. */
TEST_F(sample, mmap_outlives)
{
	unsigned char *map;

	map = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	close(self->fd);
	close(self->dev);
	self->fd = -1;
	self->dev = -1;
	memset(map, 3, self->size);
	EXPECT_EQ(3, map[self->size - 1]);
	munmap(map, self->size);
}

/* The module stays for as long as there is a buffer. */
TEST_F(sample, module_is_held)
{
	if (geteuid())
		SKIP(return, "needs root");
	close(self->dev);
	self->dev = -1;
	EXPECT_EQ(-1, syscall(SYS_delete_module, "rust_dma_buf", O_NONBLOCK));
	if (errno == ENOENT)
		SKIP(return, "the sample is built in");
	EXPECT_EQ(EWOULDBLOCK, errno);
}

TEST_F(sample, import_from_system_heap)
{
	struct dma_heap_allocation_data data = {
		.len = self->size,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	int heap = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC);

	if (heap < 0)
		SKIP(return, "/dev/dma_heap/system: %s", strerror(errno));
	ASSERT_EQ(0, do_ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data));
	EXPECT_EQ(0, sum(self->dev, data.fd));
	EXPECT_EQ(0, fill(self->dev, data.fd, 2));
	EXPECT_EQ(2 * self->size, sum(self->dev, data.fd));
	close(data.fd);
	close(heap);
}

TEST_F(sample, import_from_udmabuf)
{
	struct udmabuf_create create = {
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = self->size,
	};
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START };
	int udmabuf = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	int fd;

	if (udmabuf < 0)
		SKIP(return, "/dev/udmabuf: %s", strerror(errno));
	create.memfd = memfd_create("rust-dma-buf", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ASSERT_LE(0, (int)create.memfd);
	ASSERT_EQ(0, ftruncate(create.memfd, self->size));
	ASSERT_EQ(0, fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	fd = do_ioctl(udmabuf, UDMABUF_CREATE, &create);
	ASSERT_LE(0, fd);
	/* udmabuf does all accesses with the direction of the first one. */
	ASSERT_EQ(0, do_ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
	EXPECT_EQ(0, fill(self->dev, fd, 3));
	EXPECT_EQ(3 * self->size, sum(self->dev, fd));
	close(fd);
	close(create.memfd);
	close(udmabuf);
}

FIXTURE(driver) {
	int dev;
};

FIXTURE_SETUP(driver)
{
	self->dev = open(DMA_BUF_TEST, O_RDWR | O_CLOEXEC);
	if (self->dev < 0)
		SKIP(return, DMA_BUF_TEST ": %s (modprobe dma_buf_test)", strerror(errno));
}

FIXTURE_TEARDOWN(driver)
{
	if (self->dev >= 0)
		close(self->dev);
}

static int delete_module(void)
{
	return syscall(SYS_delete_module, "dma_buf_test", O_NONBLOCK) ? -errno : 0;
}

static int modprobe(const char *arg)
{
	int status;
	pid_t child = fork();

	if (!child) {
		execlp("modprobe", "modprobe", "dma_buf_test", arg, NULL);
		_exit(127);
	}

	return waitpid(child, &status, 0) == child ? status : -errno;
}

/* What it is for is in dmabuf_defects.c. */
TEST_F(driver, hold)
{
	int fd = do_ioctl(self->dev, DMA_BUF_TEST_REGION, NULL);
	__u64 arg[2] = { fd, 10 };

	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, do_ioctl(self->dev, DMA_BUF_TEST_HOLD, arg));
	arg[1] = 10001;
	EXPECT_EQ(-EINVAL, do_ioctl(self->dev, DMA_BUF_TEST_HOLD, arg));
	arg[0] = -1ULL;
	EXPECT_EQ(-EBADF, do_ioctl(self->dev, DMA_BUF_TEST_HOLD, arg));
	close(fd);
}

/* The operations of a buffer are in the module that exports it, wherever its type is defined. */
TEST_F(driver, buffer_keeps_the_module)
{
	int fd = do_ioctl(self->dev, DMA_BUF_TEST_REGION, NULL);
	unsigned char *map;

	ASSERT_GE(fd, 0);
	if (geteuid())
		SKIP(return, "needs root, to unload the module");
	close(self->dev);
	self->dev = -1;
	EXPECT_EQ(-EWOULDBLOCK, delete_module());
	map = mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	close(fd);
	EXPECT_EQ(-EWOULDBLOCK, delete_module());
	map[0] = 1;
	munmap(map, getpagesize());
	EXPECT_EQ(0, delete_module());
	EXPECT_EQ(0, modprobe(NULL));
}

/* A module that has given a buffer away when its initialisation fails stays while that is there. */
TEST_F(driver, failed_module_stays)
{
	int i;

	if (geteuid())
		SKIP(return, "needs root, to unload the module");
	close(self->dev);
	self->dev = -1;
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, delete_module());
		/* It is modprobe that gets the buffer, which is released when that has ended. */
		EXPECT_EQ(0, modprobe("fail=1"));
		EXPECT_EQ(-1, access(DMA_BUF_TEST, F_OK));
	}
	ASSERT_EQ(0, delete_module());
	EXPECT_EQ(0, modprobe(NULL));
}

static void on_alarm(int sig)
{
	(void)sig;
}

/* Another process that reads all of bufinfo, once. */
static pid_t read_bufinfo(void)
{
	char text[4096];
	pid_t child = fork();
	int fd;

	if (child)
		return child;
	fd = open(BUFINFO, O_RDONLY | O_CLOEXEC);
	while (read(fd, text, sizeof(text)) > 0)
		;
	_exit(0);
}

/* Who reads bufinfo while a reservation is locked is interrupted, also behind another reader. */
static void interrupted(struct __test_metadata *_metadata, int buf, bool behind)
{
	const struct itimerval often = {
		.it_interval.tv_usec = 100000,
		.it_value.tv_usec = 100000,
	};
	const struct sigaction action = { .sa_handler = on_alarm };
	const struct itimerval never = {};
	__u64 arg[2] = { buf, 3000 };
	pid_t holder, reader = 0;
	struct pollfd pfd = {};
	int dev, fd, err, i;
	char text[256];
	ssize_t ret;

	dev = open(DMA_BUF_TEST, O_RDWR | O_CLOEXEC);
	if (dev < 0)
		SKIP(return, DMA_BUF_TEST ": %s (modprobe dma_buf_test)", strerror(errno));
	fd = open(BUFINFO, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		SKIP(return, BUFINFO ": %s", strerror(errno));
	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	holder = fork();
	ASSERT_LE(0, holder);
	if (!holder)
		_exit(do_ioctl(dev, DMA_BUF_TEST_HOLD, arg) ? 1 : 0);

	/* It may take a moment until the lock is held; until then bufinfo can be read. */
	poll(&pfd, 0, 500);
	if (behind) {
		reader = read_bufinfo();
		ASSERT_LE(0, reader);
		poll(&pfd, 0, 500);
	}
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &often, NULL));
	for (i = 0; i < 10; i++) {
		ret = pread(fd, text, sizeof(text), 0);
		err = errno;
		if (ret < 0)
			break;
		poll(&pfd, 0, 50);
	}
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &never, NULL));
	EXPECT_EQ(-1, ret);
	EXPECT_EQ(EINTR, err);
	EXPECT_EQ(holder, waitpid(holder, &i, 0));
	EXPECT_EQ(0, i);
	if (behind) {
		EXPECT_EQ(reader, waitpid(reader, &i, 0));
		EXPECT_EQ(0, i);
	}
	close(fd);
	close(dev);
}

TEST_F(sample, bufinfo_interrupted)
{
	interrupted(_metadata, self->fd, false);
}

TEST_F(sample, bufinfo_interrupted_behind)
{
	interrupted(_metadata, self->fd, true);
}

TEST_HARNESS_MAIN
