// SPDX-License-Identifier: GPL-2.0
/*
 * For dmabuf_stress.c: buffers that are used while others close them.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>

#include "stress.h"

#define NUM_RACY	6	/* of each of the two kinds */
#define RACY_PAGES	2

/*
 * The system heap syncs attachments for the processor without the lock under which they are mapped
 * and unmapped, so its buffers are synced or imported, not both at a time.
 */
enum { RACY_SYNC, RACY_IMPORT, NUM_KINDS };

static const int racy_base[NUM_KINDS] = { 768, 896 };
static atomic_int racy[NUM_KINDS][NUM_RACY];

static int racy_exporter(struct worker *w, int kind)
{
	int exporter = any_exporter(w);

	if (kind == RACY_IMPORT && exporter == SYSTEM_HEAP)
		return -1;

	return exporter;
}

static void put_racy(int kind, int i, int fd)
{
	/* Whoever takes a number out is the only one to close it. */
	fd = atomic_exchange(&racy[kind][i], fd);
	if (fd >= 0)
		close(fd);
}

void init_racy(void)
{
	int i, k;

	for (k = 0; k < NUM_KINDS; k++) {
		for (i = 0; i < NUM_RACY; i++)
			atomic_init(&racy[k][i], -1);
	}
}

void close_racy(void)
{
	int i, k;

	for (k = 0; k < NUM_KINDS; k++) {
		for (i = 0; i < NUM_RACY; i++)
			put_racy(k, i, -1);
	}
}

int op_racy_create(struct worker *w, int arg)
{
	int kind = below(w, NUM_KINDS), exporter = racy_exporter(w, kind), fd, high;

	(void)arg;
	if (exporter < 0)
		return NOTHING;
	fd = alloc_buffer(w, exporter, RACY_PAGES * page_size);
	if (fd < 0)
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, racy_base[kind]);
	if (high < 0)
		high = -errno;
	close(fd);
	if (high < 0)
		return high;
	put_racy(kind, below(w, NUM_RACY), high);

	return 0;
}

int op_racy_close(struct worker *w, int arg)
{
	(void)arg;
	put_racy(below(w, NUM_KINDS), below(w, NUM_RACY), -1);

	return 0;
}

/* One more descriptor of one and the same. */
int op_racy_dup(struct worker *w, int arg)
{
	int kind = below(w, NUM_KINDS), fd = atomic_load(&racy[kind][below(w, NUM_RACY)]);

	(void)arg;
	if (fd < 0)
		return NOTHING;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, racy_base[kind]);
	if (fd < 0)
		return -errno;
	put_racy(kind, below(w, NUM_RACY), fd);

	return 0;
}

#define DEFINE_RACY_OP(op, kind)						\
int op(struct worker *w, int arg)					\
{										\
	int fd = atomic_load(&racy[kind][below(w, NUM_RACY)]);			\
										\
	(void)arg;								\
	if (fd < 0)								\
		return NOTHING;							\
	/* Others may close it right now. */					\
	if (!below(w, 4))							\
		sched_yield();							\
										\
	return do_##op(w, fd);							\
}

static int do_op_racy_name(struct worker *w, int fd)
{
	char name[DMA_BUF_NAME_LEN];
	int ret;

	if (!below(w, 16)) {
		ret = set_name(w, fd, (void *)1);
		if (ret >= 0)
			mismatch("name without an address: expected %d, found %d", -EFAULT, ret);
		return ret == -EFAULT ? 0 : ret;
	}
	random_name(w, name, sizeof(name) - 1);

	return set_name(w, fd, name);
}

DEFINE_RACY_OP(op_racy_name, below(w, NUM_KINDS))

static int do_op_racy_sync(struct worker *w, int fd)
{
	__u64 flags = 1 + below(w, DMA_BUF_SYNC_RW);
	int ret = cpu_access(fd, flags | DMA_BUF_SYNC_START);

	return ret ? ret : cpu_access(fd, flags | DMA_BUF_SYNC_END);
}

DEFINE_RACY_OP(op_racy_sync, RACY_SYNC)

static int do_op_racy_poll(struct worker *w, int fd)
{
	int ret = wait_for(fd, any_events(w), below(w, 10));

	return ret < 0 ? ret : ret & POLLNVAL ? -EBADF : 0;
}

DEFINE_RACY_OP(op_racy_poll, below(w, NUM_KINDS))

static int do_op_racy_epoll(struct worker *w, int fd)
{
	return epoll_and_close(w, fd, false);
}

DEFINE_RACY_OP(op_racy_epoll, below(w, NUM_KINDS))

static int do_op_racy_export(struct worker *w, int fd)
{
	int ret = export_sync_file(fd, 1 + below(w, DMA_BUF_SYNC_RW));

	if (ret < 0)
		return ret;
	wait_for(ret, POLLIN, below(w, 3));
	close(ret);

	return 0;
}

DEFINE_RACY_OP(op_racy_export, below(w, NUM_KINDS))

static int do_op_racy_import(struct worker *w, int fd)
{
	return import_fence(w, fd);
}

DEFINE_RACY_OP(op_racy_import, below(w, NUM_KINDS))

static int do_op_racy_map(struct worker *w, int fd)
{
	size_t i, size = RACY_PAGES * page_size;
	volatile char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return -errno;
	for (i = 0; i < size; i += page_size)
		map[i] = below(w, 256);
	munmap((void *)map, size);

	return 0;
}

DEFINE_RACY_OP(op_racy_map, below(w, NUM_KINDS))

static int do_op_racy_stat(struct worker *w, int fd)
{
	struct stat st;

	(void)w;

	return fstat(fd, &st) || lseek(fd, 0, SEEK_END) < 0 ? -errno : 0;
}

DEFINE_RACY_OP(op_racy_stat, below(w, NUM_KINDS))

static int do_op_racy_fdinfo(struct worker *w, int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);

	return read_text(path, w->text, BUFINFO_SIZE);
}

DEFINE_RACY_OP(op_racy_fdinfo, below(w, NUM_KINDS))

static int do_op_racy_sum(struct worker *w, int fd)
{
	uint64_t result;

	(void)w;

	return sum(fd, &result);
}

DEFINE_RACY_OP(op_racy_sum, RACY_IMPORT)

static int do_op_racy_prime(struct worker *w, int fd)
{
	__u32 handle;
	int ret = fd_to_handle(w->drm, fd, &handle);

	if (!ret)
		close_handle(w->drm, handle);

	return ret;
}

DEFINE_RACY_OP(op_racy_prime, RACY_IMPORT)
