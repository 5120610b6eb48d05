// SPDX-License-Identifier: GPL-2.0
/*
 * What a dma-buf does as a file, whoever exports it: the file operations, ioctls, mappings and
 * descriptors.
 */

#define _GNU_SOURCE
#include <limits.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include <linux/fs.h>
#include <linux/magic.h>

#include "dmabuf.h"

/* What a system call returns, or -errno. */
static long check(long ret)
{
	return ret < 0 ? -errno : ret;
}

/* The descriptor that the next open() would return. */
static int lowest_free_fd(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	close(fd);

	return fd;
}

FIXTURE(dmabuf) {
	struct buffer buf;
};

EXPORTER_VARIANTS(dmabuf);

FIXTURE_SETUP(dmabuf)
{
	setup_buffer(_metadata, &self->buf, variant->exporter);
}

FIXTURE_TEARDOWN(dmabuf)
{
	teardown_buffer(&self->buf);
}

/* The numbers, not what the headers make of them: the kernel knows no others. */
TEST_F(dmabuf, ioctl_numbers)
{
	struct dma_buf_export_sync_file export = { .flags = DMA_BUF_SYNC_RW };
	struct dma_buf_import_sync_file import = { .flags = DMA_BUF_SYNC_RW };
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START };
	int fd = self->buf.fd;

	EXPECT_EQ(0, do_ioctl(fd, 0x40086200, &sync));
	sync.flags = DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END;
	EXPECT_EQ(0, do_ioctl(fd, 0x40086200, &sync));
	EXPECT_EQ(0, do_ioctl(fd, 0x40046201, "A"));
	EXPECT_STREQ("/dmabuf:A", fd_link(fd));
	EXPECT_EQ(0, do_ioctl(fd, 0x40086201, "B"));
	EXPECT_STREQ("/dmabuf:B", fd_link(fd));
	ASSERT_EQ(0, do_ioctl(fd, 0xc0086202, &export));
	EXPECT_EQ(1, sync_file_status(export.fd));
	import.fd = export.fd;
	EXPECT_EQ(0, do_ioctl(fd, 0x40086203, &import));
	close(export.fd);
}

TEST(heap_ioctl_number)
{
	struct dma_heap_allocation_data data = { .len = 1, .fd_flags = O_RDWR | O_CLOEXEC };
	int dev = open(exporter_system_heap.dev, O_RDWR | O_CLOEXEC);

	if (dev < 0)
		SKIP(return, "%s: %s", exporter_system_heap.dev, strerror(errno));
	ASSERT_EQ(0, do_ioctl(dev, 0xc0184800, &data));
	EXPECT_EQ(getpagesize(), lseek(data.fd, 0, SEEK_END));
	close(data.fd);
	close(dev);
}

/* A type that is registered could be mounted. */
TEST(file_system_type)
{
	char text[4096];

	ASSERT_TRUE(read_text("/proc/filesystems", text, sizeof(text)));
	EXPECT_NE(NULL, strstr(text, "\tproc\n"));
	EXPECT_EQ(NULL, strstr(text, "dmabuf"));
}

TEST_F(dmabuf, llseek)
{
	EXPECT_EQ(self->buf.size, lseek(self->buf.fd, 0, SEEK_END));
	/* The file has no position that this would have moved. */
	EXPECT_EQ(0, check(lseek(self->buf.fd, 0, SEEK_SET)));
	EXPECT_EQ(self->buf.size, lseek(self->buf.fd, 0, SEEK_END));
}

TEST_F(dmabuf, llseek_invalid)
{
	static const struct {
		off_t offset;
		int whence;
	} seeks[] = {
		{ 0, SEEK_CUR }, { 1, SEEK_CUR }, { 1, SEEK_SET }, { -1, SEEK_SET },
		{ 1, SEEK_END }, { -1, SEEK_END }, { 0, SEEK_DATA }, { 0, SEEK_HOLE },
		{ 0, SEEK_HOLE + 1 }, { 0, -1 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(seeks); i++) {
		errno = 0;
		EXPECT_EQ(-1, lseek(self->buf.fd, seeks[i].offset, seeks[i].whence));
		EXPECT_EQ(EINVAL, errno) TH_LOG("seek %d", i);
	}
}

/* The memory is there to be mapped, not to be read or written. */
TEST_F(dmabuf, read_write)
{
	char byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	int fd = self->buf.fd;

	EXPECT_EQ(-EINVAL, check(read(fd, &byte, 1)));
	EXPECT_EQ(-EINVAL, check(write(fd, &byte, 1)));
	EXPECT_EQ(-EINVAL, check(readv(fd, &iov, 1)));
	EXPECT_EQ(-EINVAL, check(writev(fd, &iov, 1)));
	EXPECT_EQ(-ESPIPE, check(pread(fd, &byte, 1, 0)));
	EXPECT_EQ(-ESPIPE, check(pwrite(fd, &byte, 1, 0)));
}

TEST_F(dmabuf, splice)
{
	int fd = self->buf.fd, file, pipes[2];
	loff_t offset = 0;

	file = memfd_create("dmabuf-test", MFD_CLOEXEC);
	ASSERT_GE(file, 0);
	ASSERT_EQ(0, ftruncate(file, 16));
	ASSERT_EQ(0, pipe2(pipes, O_CLOEXEC | O_NONBLOCK));
	ASSERT_EQ(1, write(pipes[1], "x", 1));

	EXPECT_EQ(-EINVAL, check(splice(fd, NULL, pipes[1], NULL, 1, 0)));
	EXPECT_EQ(-EINVAL, check(splice(pipes[0], NULL, fd, NULL, 1, 0)));
	EXPECT_EQ(-EINVAL, check(splice(fd, &offset, pipes[1], NULL, 1, 0)));
	EXPECT_EQ(-EINVAL, check(splice(pipes[0], NULL, fd, &offset, 1, 0)));
	EXPECT_EQ(-EINVAL, check(sendfile(pipes[1], fd, NULL, 1)));
	EXPECT_EQ(-EINVAL, check(sendfile(fd, file, NULL, 1)));
	EXPECT_EQ(-EINVAL, check(copy_file_range(fd, NULL, file, NULL, 1, 0)));
	EXPECT_EQ(-EINVAL, check(copy_file_range(file, NULL, fd, NULL, 1, 0)));
	close(file);
	close(pipes[0]);
	close(pipes[1]);
}

TEST_F(dmabuf, not_a_regular_file)
{
	int fd = self->buf.fd, number = 0;

	EXPECT_EQ(-EINVAL, check(fsync(fd)));
	EXPECT_EQ(-EINVAL, check(fdatasync(fd)));
	EXPECT_EQ(-ESPIPE, check(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)));
	EXPECT_EQ(-EINVAL, check(ftruncate(fd, 0)));
	EXPECT_EQ(-ENODEV, check(fallocate(fd, 0, 0, self->buf.size)));
	EXPECT_EQ(-EINVAL, check(readahead(fd, 0, self->buf.size)));
	EXPECT_EQ(-ENOTDIR, check(fchdir(fd)));
	EXPECT_EQ(-EINVAL, check(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)));
	EXPECT_EQ(-EINVAL, check(fcntl(fd, F_GET_SEALS)));
	EXPECT_EQ(-EINVAL, check(fcntl(fd, F_SETLEASE, F_RDLCK)));
	EXPECT_EQ(-EBADF, check(fcntl(fd, F_SETPIPE_SZ, 4096)));
	EXPECT_EQ(-ENOTTY, do_ioctl(fd, FIONREAD, &number));
	EXPECT_EQ(-ENOTTY, do_ioctl(fd, FS_IOC_GETFLAGS, &number));
	EXPECT_EQ(0, do_ioctl(fd, FIGETBSZ, &number));
	EXPECT_EQ(getpagesize(), number);
}

/* Locks are the VFS's; the buffer takes no part. */
TEST_F(dmabuf, locks)
{
	struct flock lock = { .l_type = F_WRLCK };

	EXPECT_EQ(0, check(flock(self->buf.fd, LOCK_EX | LOCK_NB)));
	EXPECT_EQ(0, check(flock(self->buf.fd, LOCK_UN)));
	EXPECT_EQ(0, check(fcntl(self->buf.fd, F_SETLK, &lock)));
	lock.l_type = F_UNLCK;
	EXPECT_EQ(0, check(fcntl(self->buf.fd, F_SETLK, &lock)));
}

TEST_F(dmabuf, stat)
{
	struct stat st;

	ASSERT_EQ(0, fstat(self->buf.fd, &st));
	EXPECT_EQ(self->buf.size, st.st_size);
	EXPECT_EQ(self->buf.size / 512, st.st_blocks);
	EXPECT_EQ(getpagesize(), st.st_blksize);
	/* Like any anonymous inode it has no type. */
	EXPECT_EQ(0600, st.st_mode);
	EXPECT_EQ(1, st.st_nlink);
	EXPECT_EQ(geteuid(), st.st_uid);
	EXPECT_EQ(getegid(), st.st_gid);
	EXPECT_EQ(0, st.st_rdev);
	EXPECT_NE(0, st.st_mtime);
	EXPECT_EQ(st.st_mtime, st.st_ctime);
}

TEST_F(dmabuf, stat_inode)
{
	int other = alloc_another(&self->buf);

	ASSERT_GE(other, 0);
	EXPECT_NE(0, inode_of(self->buf.fd));
	/* They are numbered as they come. Others may export at the same time. */
	EXPECT_LT(inode_of(self->buf.fd), inode_of(other));
	close(other);
}

TEST_F(dmabuf, stat_device)
{
	int other = alloc_another(&self->buf);
	struct stat a, b;

	ASSERT_GE(other, 0);
	ASSERT_EQ(0, fstat(self->buf.fd, &a));
	ASSERT_EQ(0, fstat(other, &b));
	EXPECT_EQ(a.st_dev, b.st_dev);
	close(other);
}

TEST_F(dmabuf, statfs)
{
	struct statfs st;

	ASSERT_EQ(0, fstatfs(self->buf.fd, &st));
	EXPECT_EQ(DMA_BUF_MAGIC, st.f_type);
	EXPECT_EQ(0x444d4142, st.f_type);
	EXPECT_EQ(getpagesize(), st.f_bsize);
	EXPECT_EQ(NAME_MAX, st.f_namelen);
}

TEST_F(dmabuf, ioctl_unknown)
{
	char arg[64] = {};
	int nr;

	for (nr = 0; nr < 256; nr++)
		EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IO(DMA_BUF_BASE, nr), arg));
	for (nr = 4; nr < 256; nr++)
		EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(DMA_BUF_BASE, nr, __u64), arg));
	/* The right number, but not the size or the direction. */
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(DMA_BUF_BASE, 0, __u32), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOR(DMA_BUF_BASE, 0, __u64), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(DMA_BUF_BASE, 1, __u16), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(DMA_BUF_BASE, 2, __u64), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOWR(DMA_BUF_BASE, 0, __u64), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOR(DMA_BUF_BASE, 1, __u32), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOR(DMA_BUF_BASE, 1, __u64), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOWR(DMA_BUF_BASE, 2, __u32), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOWR(DMA_BUF_BASE, 3, __u64), arg));
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOR(DMA_BUF_BASE, 3, __u64), arg));
	/* The right ones, of somebody else. */
	for (nr = 0; nr < 256; nr++) {
		if (nr == DMA_BUF_BASE)
			continue;
		EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IOW(nr, 0, __u64), arg));
	}
}

/* The number comes first, then the argument, then the descriptor in it. */
TEST_F(dmabuf, ioctl_bad_pointer)
{
	static const unsigned long cmds[] = {
		DMA_BUF_IOCTL_SYNC, DMA_BUF_SET_NAME_A, DMA_BUF_SET_NAME_B,
		DMA_BUF_IOCTL_EXPORT_SYNC_FILE, DMA_BUF_IOCTL_IMPORT_SYNC_FILE,
	};
	size_t page = getpagesize();
	int i, before = lowest_free_fd();
	char *pages, *end;

	pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, pages);
	end = pages + page;
	ASSERT_EQ(0, mprotect(end, page, PROT_NONE));
	memset(pages, DMA_BUF_SYNC_RW, page);

	for (i = 0; i < ARRAY_SIZE(cmds); i++) {
		EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, cmds[i], NULL));
		EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, cmds[i], BAD_PTR));
		EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, cmds[i], (void *)-1L));
		EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, cmds[i], end));
		/* Half of it is there. */
		EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, cmds[i], end - 4));
	}
	EXPECT_EQ(-ENOTTY, do_ioctl(self->buf.fd, _IO(DMA_BUF_BASE, 0), NULL));
	EXPECT_EQ(before, lowest_free_fd());
	munmap(pages, 2 * page);
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
	int bit;

	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_START));
	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_END));
	for (bit = 3; bit < 64; bit++)
		EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | 1ULL << bit));
	EXPECT_EQ(-EINVAL, cpu_access(self->buf.fd, ~0ULL));
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

	if (!self->buf.exporter->maps_parts)
		SKIP(return, "%s maps the first page at any offset", self->buf.exporter->dev);

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
	EXPECT_EQ(-EINVAL, try_map(self->buf.fd, size + 1, PROT_READ, 0));
	/* The offset is not that of a page, nothing is mapped, or the end wraps. */
	EXPECT_EQ(-EINVAL, try_map(self->buf.fd, page, PROT_READ, 1));
	EXPECT_EQ(-EINVAL, try_map(self->buf.fd, 0, PROT_READ, 0));
	EXPECT_EQ(-EOVERFLOW, try_map(self->buf.fd, page, PROT_READ, -page));
	/* A part of a page is all of it. */
	EXPECT_EQ(0, try_map(self->buf.fd, 1, PROT_READ, size - page));
	EXPECT_EQ(0, try_map(self->buf.fd, size - 1, PROT_READ, 0));
}

/* A copy of the buffer would be of no use to anybody else. */
TEST_F(dmabuf, mmap_private)
{
	size_t size = self->buf.size;
	void *addr;

	addr = mmap(NULL, size, PROT_READ, MAP_PRIVATE, self->buf.fd, 0);
	EXPECT_EQ(MAP_FAILED, addr);
	EXPECT_EQ(EINVAL, errno);
	addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, self->buf.fd, 0);
	EXPECT_EQ(MAP_FAILED, addr);
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(dmabuf, mmap_protection)
{
	size_t size = self->buf.size;
	unsigned char *addr;

	addr = mmap(NULL, size, PROT_NONE, MAP_SHARED, self->buf.fd, 0);
	ASSERT_NE(MAP_FAILED, addr);
	ASSERT_EQ(0, check(mprotect(addr, size, PROT_READ | PROT_WRITE)));
	addr[size - 1] = 0x5a;
	ASSERT_EQ(0, check(mprotect(addr, size, PROT_READ)));
	EXPECT_EQ(0x5a, addr[size - 1]);
	munmap(addr, size);
	EXPECT_EQ(0, try_map(self->buf.fd, size, PROT_WRITE, 0));
}

TEST_F(dmabuf, mremap)
{
	size_t page = getpagesize(), size = self->buf.size;
	unsigned char *addr, *moved;

	addr = map(self->buf.fd, size);
	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_EQ(MAP_FAILED, mremap(addr, size, size + page, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);

	/* Neither grows a part of it, into what is there. */
	ASSERT_EQ(addr, mremap(addr, size, page, 0));
	EXPECT_EQ(MAP_FAILED, mremap(addr, page, size, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);

	addr[0] = 0x5a;
	moved = mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, moved);
	ASSERT_EQ(moved, mremap(addr, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(0x5a, moved[0]);
	EXPECT_STREQ("/dmabuf:", maps_path(moved));
	munmap(moved, page);
	EXPECT_EQ(1, fdinfo_count(self->buf.fd));
}

/* Each part is a mapping of its own, and keeps the buffer. */
TEST_F(dmabuf, munmap_part)
{
	size_t page = getpagesize(), size = self->buf.size;
	unsigned char *addr = map(self->buf.fd, size);

	ASSERT_NE(MAP_FAILED, addr);
	addr[0] = 0x5a;
	addr[size - 1] = 0xa5;
	ASSERT_EQ(0, munmap(addr + page, page));
	EXPECT_EQ(3, fdinfo_count(self->buf.fd));
	EXPECT_EQ(0x5a, addr[0]);
	EXPECT_EQ(0xa5, addr[size - 1]);
	munmap(addr, page);
	EXPECT_EQ(2, fdinfo_count(self->buf.fd));
	munmap(addr + 2 * page, size - 2 * page);
	EXPECT_EQ(1, fdinfo_count(self->buf.fd));
}

TEST_F(dmabuf, mmap_exec)
{
	void *addr;

	EXPECT_EQ(-EPERM, try_map(self->buf.fd, self->buf.size, PROT_READ | PROT_EXEC, 0));
	EXPECT_EQ(-EPERM, try_map(self->buf.fd, self->buf.size, PROT_EXEC, 0));

	addr = map(self->buf.fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_EQ(-EACCES, check(mprotect(addr, self->buf.size, PROT_READ | PROT_EXEC)));
	EXPECT_EQ(-EACCES, check(mprotect(addr, self->buf.size, PROT_EXEC)));
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

TEST_F(dmabuf, dup_flags)
{
	int fd = self->buf.fd, null, other;

	/* All exporters were asked for this. */
	EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));

	other = dup(fd);
	ASSERT_GE(other, 0);
	EXPECT_EQ(0, fcntl(other, F_GETFD));
	EXPECT_EQ(0, do_ioctl(other, FIOCLEX, NULL));
	EXPECT_EQ(FD_CLOEXEC, fcntl(other, F_GETFD));
	close(other);

	other = fcntl(fd, F_DUPFD_CLOEXEC, 100);
	EXPECT_EQ(100, other);
	EXPECT_EQ(FD_CLOEXEC, fcntl(other, F_GETFD));
	EXPECT_EQ(inode_of(fd), inode_of(other));
	close(other);

	/* What was there is closed. */
	null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	ASSERT_GE(null, 0);
	EXPECT_EQ(null, dup2(fd, null));
	EXPECT_EQ(inode_of(fd), inode_of(null));
	EXPECT_EQ(2, fdinfo_count(fd));
	other = alloc_another(&self->buf);
	ASSERT_GE(other, 0);
	EXPECT_EQ(null, dup3(other, null, O_CLOEXEC));
	EXPECT_EQ(inode_of(other), inode_of(null));
	EXPECT_EQ(1, fdinfo_count(fd));
	EXPECT_EQ(2, fdinfo_count(other));
	close(other);
	close(null);
}

TEST_F(dmabuf, file_flags)
{
	int other = dup(self->buf.fd);

	ASSERT_GE(other, 0);
	EXPECT_EQ(O_RDWR, fcntl(self->buf.fd, F_GETFL));
	EXPECT_EQ(0, check(fcntl(other, F_SETFL, O_NONBLOCK | O_APPEND)));
	EXPECT_EQ(O_RDWR | O_NONBLOCK | O_APPEND, fcntl(self->buf.fd, F_GETFL));
	EXPECT_EQ(-EINVAL, check(fcntl(other, F_SETFL, O_DIRECT)));
	EXPECT_EQ(0, check(fcntl(other, F_SETFL, O_RDONLY)));
	EXPECT_EQ(O_RDWR, fcntl(self->buf.fd, F_GETFL));
	close(other);
}

/* There is no way to the file but a descriptor of somebody who has one. */
TEST_F(dmabuf, reopen)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->buf.fd);
	EXPECT_EQ(-ENXIO, check(open(path, O_RDWR | O_CLOEXEC)));
	EXPECT_EQ(-ENXIO, check(open(path, O_RDONLY | O_CLOEXEC)));
}

TEST_F(dmabuf, path_descriptor)
{
	unsigned long long ino = inode_of(self->buf.fd);
	char path[64], name[] = "frame";
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->buf.fd);
	fd = open(path, O_PATH | O_CLOEXEC);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(ino, inode_of(fd));
	EXPECT_EQ(-EBADF, do_ioctl(fd, DMA_BUF_SET_NAME_B, name));
	EXPECT_EQ(-EBADF, try_map(fd, self->buf.size, PROT_READ, 0));
	EXPECT_EQ(-EBADF, check(lseek(fd, 0, SEEK_END)));
	/* It is a reference to the path, not to the file. */
	EXPECT_EQ(1, fdinfo_count(self->buf.fd));
	ASSERT_EQ(0, set_name(self->buf.fd, name));
	close(self->buf.fd);
	self->buf.fd = -1;
	EXPECT_EQ(ino, inode_of(fd));
	EXPECT_STREQ("/dmabuf:frame", fd_link(fd));
	close(fd);
}

#define INHERITED	"DMABUF_TEST_INHERITED"

/*
 * Runs before main() when a test has executed this program anew. The descriptor has to be the
 * buffer whose inode number comes with it, or closed if that is 0.
 */
static void __attribute__((constructor)) check_inherited(void)
{
	const char *text = getenv(INHERITED);
	unsigned long long ino;
	struct stat st;
	int fd;

	if (!text)
		return;
	if (sscanf(text, "%d %llu", &fd, &ino) != 2)
		_exit(2);
	if (!ino)
		_exit(!fstat(fd, &st) || errno != EBADF);
	_exit(inode_of(fd) != ino || set_name(fd, "executed"));
}

static bool survives_exec(int fd, unsigned long long ino)
{
	char text[64], *argv[] = { "dmabuf", NULL }, *envp[] = { text, NULL };
	pid_t child;

	snprintf(text, sizeof(text), INHERITED "=%d %llu", fd, ino);
	child = fork_child();
	if (!child) {
		execve("/proc/self/exe", argv, envp);
		_exit(2);
	}

	return child > 0 && child_succeeds(child);
}

TEST_F(dmabuf, exec)
{
	unsigned long long ino = inode_of(self->buf.fd);
	int fd = dup(self->buf.fd);

	ASSERT_GE(fd, 0);
	EXPECT_TRUE(survives_exec(self->buf.fd, 0));
	EXPECT_STREQ("/dmabuf:", fd_link(fd));
	EXPECT_TRUE(survives_exec(fd, ino));
	EXPECT_STREQ("/dmabuf:executed", fd_link(fd));
	EXPECT_EQ(2, fdinfo_count(fd));
	close(fd);
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
	EXPECT_EQ(0, poll_now(self->buf.fd, 0));
}

/* The buffer knows two events, whatever else is asked for. */
TEST_F(dmabuf, poll_other_events)
{
	static const short others[] = {
		POLLPRI, POLLRDHUP, POLLMSG, POLLRDNORM, POLLRDBAND, POLLWRNORM, POLLWRBAND,
		POLLERR, POLLHUP,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		EXPECT_EQ(0, poll_now(self->buf.fd, others[i]));
		EXPECT_EQ(POLLIN, poll_now(self->buf.fd, others[i] | POLLIN));
		EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, others[i] | POLL_RW));
	}
}

TEST_F(dmabuf, epoll_idle)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET };
	int ep = epoll_create1(EPOLL_CLOEXEC);

	ASSERT_GE(ep, 0);
	ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, self->buf.fd, &event));
	EXPECT_EQ(1, epoll_wait(ep, &event, 1, 0));
	EXPECT_EQ(EPOLLIN | EPOLLOUT, event.events);
	close(ep);
}

TEST_F(dmabuf, export_sync_file_invalid)
{
	struct dma_buf_export_sync_file arg = { .flags = DMA_BUF_SYNC_END, .fd = -77 };
	int bit, before = lowest_free_fd();

	EXPECT_EQ(-EINVAL, export_sync_file(self->buf.fd, 0));
	for (bit = 2; bit < 32; bit++) {
		EXPECT_EQ(-EINVAL, export_sync_file(self->buf.fd, 1U << bit));
		EXPECT_EQ(-EINVAL, export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW | 1U << bit));
	}
	/* Nothing comes of it. */
	EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &arg));
	EXPECT_EQ(DMA_BUF_SYNC_END, arg.flags);
	EXPECT_EQ(-77, arg.fd);
	EXPECT_EQ(before, lowest_free_fd());
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

/* The limit is met before or after the exporter has made the buffer. */
TEST_F(dmabuf, alloc_no_free_fd)
{
	struct rlimit limit, lower;
	int fd;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	lower = limit;
	lower.rlim_cur = lowest_free_fd() + self->buf.exporter->fds - 1;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lower));
	EXPECT_EQ(-EMFILE, alloc_another(&self->buf));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_EQ(lower.rlim_cur, lowest_free_fd() + self->buf.exporter->fds - 1);

	fd = alloc_another(&self->buf);
	EXPECT_GE(fd, 0);
	close(fd);
}

TEST_F(dmabuf, import_sync_file_invalid)
{
	int fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	int bit, null;

	ASSERT_GE(fd, 0);
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, 0, fd));
	for (bit = 2; bit < 32; bit++) {
		EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, 1U << bit, fd));
		EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW | 1U << bit, fd));
	}
	/* Not a sync file, not a file. */
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, self->buf.fd));
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, -1));
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, INT_MAX));
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, INT_MIN));
	null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	ASSERT_GE(null, 0);
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, null));
	close(null);
	EXPECT_EQ(-EINVAL, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, null));
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
 * udmabuf: a buffer of several files
 */

#define NUM_MEMFDS	2

struct udmabuf_list {
	struct udmabuf_create_list head;
	struct udmabuf_create_item items[NUM_MEMFDS];
};

FIXTURE(udmabuf) {
	struct udmabuf_list list;
	size_t page;
	int dev;
	int memfds[NUM_MEMFDS];
};

/* The second page of each of two files, which all have a byte of their own. */
FIXTURE_SETUP(udmabuf)
{
	unsigned char *pages;
	int i, fd;

	self->page = getpagesize();
	self->dev = open(exporter_udmabuf.dev, O_RDWR | O_CLOEXEC);
	if (self->dev < 0)
		SKIP(return, "%s: %s", exporter_udmabuf.dev, strerror(errno));
	self->list.head.flags = UDMABUF_FLAGS_CLOEXEC;
	self->list.head.count = NUM_MEMFDS;
	for (i = 0; i < NUM_MEMFDS; i++) {
		fd = memfd_create("dmabuf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(0, ftruncate(fd, 2 * self->page));
		ASSERT_EQ(0, fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
		pages = map(fd, 2 * self->page);
		ASSERT_NE(MAP_FAILED, pages);
		memset(pages, 0x10 + i, self->page);
		memset(pages + self->page, 0x20 + i, self->page);
		munmap(pages, 2 * self->page);
		self->memfds[i] = fd;
		self->list.items[i].memfd = fd;
		self->list.items[i].offset = self->page;
		self->list.items[i].size = self->page;
	}
}

FIXTURE_TEARDOWN(udmabuf)
{
	int i;

	for (i = 0; i < NUM_MEMFDS; i++)
		close(self->memfds[i]);
	close(self->dev);
}

TEST_F(udmabuf, ioctl_numbers)
{
	struct udmabuf_create create = {
		.memfd = self->memfds[0],
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = self->page,
	};
	int fd;

	fd = do_ioctl(self->dev, 0x40187542, &create);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(self->page, lseek(fd, 0, SEEK_END));
	close(fd);
	fd = do_ioctl(self->dev, 0x40087543, &self->list);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(NUM_MEMFDS * self->page, lseek(fd, 0, SEEK_END));
	close(fd);
}

TEST_F(udmabuf, create_list)
{
	size_t i, size = NUM_MEMFDS * self->page;
	unsigned char *addr, *file;
	int fd;

	fd = do_ioctl(self->dev, UDMABUF_CREATE_LIST, &self->list);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
	EXPECT_EQ(size, lseek(fd, 0, SEEK_END));
	addr = map(fd, size);
	ASSERT_NE(MAP_FAILED, addr);
	for (i = 0; i < size && addr[i] == 0x20 + i / self->page; i++)
		;
	EXPECT_EQ(size, i);

	/* The memory is the files', not a copy of it. */
	addr[size - 1] = 0x5a;
	file = map(self->memfds[NUM_MEMFDS - 1], 2 * self->page);
	ASSERT_NE(MAP_FAILED, file);
	EXPECT_EQ(0x5a, file[2 * self->page - 1]);
	munmap(file, 2 * self->page);
	munmap(addr, size);
	close(fd);

	self->list.head.flags = 0;
	fd = do_ioctl(self->dev, UDMABUF_CREATE_LIST, &self->list);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, fcntl(fd, F_GETFD));
	close(fd);
}

TEST_F(udmabuf, create_list_invalid)
{
	struct udmabuf_list *list = &self->list, good = self->list;
	int before = lowest_free_fd();
	size_t page = self->page;
	char *pages, *end;
	int unsealed;

	list->head.count = 0;
	EXPECT_EQ(-EINVAL, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));
	list->head.count = UINT_MAX;
	EXPECT_EQ(-EINVAL, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));

	/* What is wrong with the last one is so with all. */
	*list = good;
	list->items[1].offset++;
	EXPECT_EQ(-EINVAL, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));
	*list = good;
	list->items[1].size--;
	EXPECT_EQ(-EINVAL, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));
	/* Beyond the end of the file. */
	*list = good;
	list->items[1].offset = 2 * page;
	EXPECT_EQ(-EINVAL, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));
	*list = good;
	list->items[1].memfd = -1;
	EXPECT_EQ(-EBADFD, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));
	list->items[1].memfd = self->dev;
	EXPECT_EQ(-EBADFD, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));
	unsealed = memfd_create("dmabuf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ASSERT_GE(unsealed, 0);
	ASSERT_EQ(0, ftruncate(unsealed, 2 * page));
	list->items[1].memfd = unsealed;
	EXPECT_EQ(-EINVAL, do_ioctl(self->dev, UDMABUF_CREATE_LIST, list));
	close(unsealed);

	EXPECT_EQ(-EFAULT, do_ioctl(self->dev, UDMABUF_CREATE_LIST, NULL));
	pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, pages);
	end = pages + page;
	ASSERT_EQ(0, mprotect(end, page, PROT_NONE));
	/* Only the head, then all but the last item. */
	memcpy(end - sizeof(good.head), &good, sizeof(good.head));
	EXPECT_EQ(-EFAULT, do_ioctl(self->dev, UDMABUF_CREATE_LIST, end - sizeof(good.head)));
	end -= sizeof(good) - sizeof(good.items[0]);
	memcpy(end, &good, sizeof(good) - sizeof(good.items[0]));
	EXPECT_EQ(-EFAULT, do_ioctl(self->dev, UDMABUF_CREATE_LIST, end));
	munmap(pages, 2 * page);
	EXPECT_EQ(before, lowest_free_fd());
}

/*
 * Buffers that were exported for less than reading and writing
 */

FIXTURE(access_mode) {
	struct buffer buf;
};

FIXTURE_VARIANT(access_mode) {
	const struct exporter *exporter;
	int mode;
};

FIXTURE_VARIANT_ADD(access_mode, system_heap_read_only) {
	.exporter = &exporter_system_heap,
	.mode = O_RDONLY,
};

FIXTURE_VARIANT_ADD(access_mode, system_heap_write_only) {
	.exporter = &exporter_system_heap,
	.mode = O_WRONLY,
};

FIXTURE_VARIANT_ADD(access_mode, vgem_read_only) {
	.exporter = &exporter_vgem,
	.mode = O_RDONLY,
};

FIXTURE_SETUP(access_mode)
{
	setup_buffer_mode(_metadata, &self->buf, variant->exporter, variant->mode);
}

FIXTURE_TEARDOWN(access_mode)
{
	teardown_buffer(&self->buf);
}

TEST_F(access_mode, file_flags)
{
	EXPECT_EQ(variant->mode, fcntl(self->buf.fd, F_GETFL));
}

TEST_F(access_mode, mmap)
{
	bool read = variant->mode == O_RDONLY;
	size_t size = self->buf.size;
	unsigned char *addr;

	/* Nothing is mapped for writing alone, so a descriptor has to be readable at least. */
	EXPECT_EQ(read ? 0 : -EACCES, try_map(self->buf.fd, size, PROT_READ, 0));
	EXPECT_EQ(-EACCES, try_map(self->buf.fd, size, PROT_WRITE, 0));
	EXPECT_EQ(-EACCES, try_map(self->buf.fd, size, PROT_READ | PROT_WRITE, 0));
	EXPECT_EQ(read ? -EPERM : -EACCES, try_map(self->buf.fd, size, PROT_EXEC, 0));
	if (!read)
		return;

	addr = mmap(NULL, size, PROT_READ, MAP_SHARED, self->buf.fd, 0);
	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_EQ(-EACCES, check(mprotect(addr, size, PROT_READ | PROT_WRITE)));
	EXPECT_EQ(-EACCES, check(mprotect(addr, size, PROT_WRITE)));
	EXPECT_EQ(0, addr[size - 1]);
	munmap(addr, size);
}

TEST_F(access_mode, read_write)
{
	bool read_only = variant->mode == O_RDONLY;
	char byte = 0;

	EXPECT_EQ(read_only ? -EINVAL : -EBADF, check(read(self->buf.fd, &byte, 1)));
	EXPECT_EQ(read_only ? -EBADF : -EINVAL, check(write(self->buf.fd, &byte, 1)));
}

/* The mode is about mappings. */
TEST_F(access_mode, ioctls)
{
	int fd;

	EXPECT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	EXPECT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
	EXPECT_EQ(0, set_name(self->buf.fd, "frame"));
	EXPECT_STREQ(expected_fdinfo(&self->buf, "frame"), read_fdinfo(self->buf.fd));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, import_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE, fd));
	close(fd);
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	EXPECT_EQ(self->buf.size, lseek(self->buf.fd, 0, SEEK_END));
}

TEST_HARNESS_MAIN
