/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of dmabuf_stress.c share.
 */
#ifndef DMABUF_STRESS_H
#define DMABUF_STRESS_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/dma-buf.h>

#include "kselftest.h"
#include "rust_dma_buf.h"

#define MAX_THREADS	64
#define MAX_REPORTS	20
#define LATE		20	/* seconds for a fence, which takes milliseconds */

#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define SW_SYNC		"/sys/kernel/debug/sync/sw_sync"
#define BUFINFO_SIZE	(1 << 20)
#define POLL_RW		(POLLIN | POLLOUT)

/* What an operation returns if there was nothing to do, which does not count. */
#define NOTHING		1

/* What the machine has. The first are exporters. */
enum {
	SYSTEM_HEAP,
	UDMABUF,
	VGEM,
	RUST_SAMPLE,
	NUM_EXPORTERS,
	FENCES = NUM_EXPORTERS,
	BUFFER_LIST,
	NUM_NEEDS
};

struct buffer {
	unsigned int id;
	unsigned int generation;	/* of the contents */
	int exporter;
	size_t size;
	int fd;
	bool named;
	char name[DMA_BUF_NAME_LEN];
};

struct counts {
	unsigned long done;
	unsigned long failed;
	int error;			/* the last one */
};

#define MAX_OPS		48

struct worker {
	pthread_t thread;
	atomic_int tid;
	uint64_t random;
	int drm;			/* handles are per open file, and not counted */
	char *text;
	atomic_int op;
	atomic_ulong progress;
	atomic_bool ended;
	struct counts counts[MAX_OPS];
	/* for the main thread */
	unsigned long seen;
	double since;
};

/* The first difference. */
struct difference {
	uint64_t offset;
	uint64_t expected;
	uint64_t found;
};

/*
 * Exporters, contents and small things: stress_buffer.c
 */

extern const char * const need_names[NUM_NEEDS];
extern long page_size;
extern int devices[NUM_NEEDS];
extern int num_exporters;
extern atomic_int num_mismatches, num_late;

static inline bool have(int need)
{
	return devices[need] >= 0;
}

uint64_t mix(uint64_t x);
unsigned int below(struct worker *w, unsigned int n);
double now(void);
void __printf(1, 2) say(const char *format, ...);

#define report(counter, format, ...)						\
	do {									\
		if (atomic_fetch_add(counter, 1) < MAX_REPORTS)			\
			say(format, ##__VA_ARGS__);				\
	} while (0)

#define mismatch(format, ...)	report(&num_mismatches, "mismatch: " format, ##__VA_ARGS__)
#define late(format, ...)	report(&num_late, "late: " format, ##__VA_ARGS__)

int do_ioctl(int fd, unsigned long cmd, void *arg);
int read_text(const char *path, char *text, size_t size);
int cpu_access(int fd, __u64 flags);
int wait_for(int fd, short events, int milliseconds);
int export_sync_file(int fd, __u32 flags);

int open_vgem(void);
void open_devices(void);
void close_devices(void);
void close_handle(int drm, __u32 handle);
int handle_to_fd(int drm, __u32 handle);
int fd_to_handle(int drm, int fd, __u32 *handle);
int sum(int fd, uint64_t *result);

int any_exporter(struct worker *w);
int alloc_buffer(struct worker *w, int exporter, size_t size);
int create_buffer(struct worker *w, struct buffer *buf, int exporter);
int write_contents(struct buffer *buf);
uint64_t sum_of(const struct buffer *buf);
void report_difference(const char *where, const struct buffer *buf, const struct difference *diff);
void check_map(const char *where, const void *map, const struct buffer *buf);
int find_difference(int fd, const struct buffer *buf, struct difference *diff, bool *found);
int check_fd(const char *where, int fd, const struct buffer *buf);

/*
 * Shared buffers: stress_shared.c
 */

void init_shared(void);
void close_shared(void);
size_t random_name(struct worker *w, char *name, size_t max);
int set_name(struct worker *w, int fd, const void *name);

typedef int shared_op_fn(struct worker *w, struct buffer *buf, int arg);

int with_shared(struct worker *w, bool write, shared_op_fn *use, int arg);

#define DEFINE_SHARED_OP(op, write)						\
int op(struct worker *w, int arg)						\
{										\
	return with_shared(w, write, do_##op, arg);				\
}

/*
 * Fences: stress_fence.c
 */

void start_timelines(void);
void end_timelines(void);
short any_events(struct worker *w);
int import_fence(struct worker *w, int fd);
int epoll_and_close(struct worker *w, int fd, bool close_it);

/*
 * Other processes: stress_process.c
 */

void start_helpers(void);
void kill_helpers(void);
bool reap_helpers(void);

/*
 * Racy buffers: stress_racy.c
 */

void init_racy(void);
void close_racy(void);

/*
 * Operations. They return 0, -errno or NOTHING.
 */

typedef int op_fn(struct worker *w, int arg);

op_fn op_create, op_write, op_check, op_name, op_fdinfo, op_maps, op_bufinfo, op_seek,
	op_stat, op_dup;
op_fn op_sum, op_prime;
op_fn op_import, op_export, op_poll, op_poll_wait, op_epoll, op_epoll_last, op_map_last;
op_fn op_send, op_send_last, op_send_lost;
op_fn op_racy_create, op_racy_close, op_racy_dup, op_racy_name, op_racy_sync,
	op_racy_poll, op_racy_epoll, op_racy_export, op_racy_import, op_racy_map, op_racy_stat,
	op_racy_fdinfo, op_racy_sum, op_racy_prime;

#endif
