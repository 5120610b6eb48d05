// SPDX-License-Identifier: GPL-2.0
/*
 * For dmabuf_stress.c: fences that signal soon, and those who wait for them.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/epoll.h>

#include <linux/sync_file.h>

#include "stress.h"

#define NUM_TIMELINES	4
#define MAX_HELD	64

/* The ioctls of sw_sync have no header. */
struct sw_sync_create_fence_data {
	__u32	value;
	char	name[32];
	__s32	fence;
};

#define SW_SYNC_IOC_CREATE_FENCE	_IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC			_IOW('W', 1, __u32)

/* All fences have a descriptor here until they have signalled: see create_fence(). */
struct timeline {
	pthread_mutex_t lock;
	int fd;
	unsigned int next;		/* the last value that a fence was made for */
	unsigned int value;
	unsigned int target;
	int num_held;
	struct {
		int fd;
		unsigned int value;
	} held[MAX_HELD];
};

static struct timeline timelines[NUM_TIMELINES];
static pthread_t thread;
static atomic_bool stop;

static void advance(struct timeline *line, unsigned int target)
{
	__u32 by = target - line->value;
	int i, kept = 0;

	if (by && !do_ioctl(line->fd, SW_SYNC_IOC_INC, &by))
		line->value = target;
	for (i = 0; i < line->num_held; i++) {
		if ((int)(line->held[i].value - line->value) > 0)
			line->held[kept++] = line->held[i];
		else
			close(line->held[i].fd);
	}
	line->num_held = kept;
}

/* All fences signal, a round or two after they were made. */
static void *signal_fences(void *arg)
{
	struct timeline *line;
	int i;

	(void)arg;
	while (!atomic_load(&stop)) {
		for (i = 0; i < NUM_TIMELINES; i++) {
			line = &timelines[i];
			pthread_mutex_lock(&line->lock);
			advance(line, line->target);
			line->target = line->next;
			pthread_mutex_unlock(&line->lock);
		}
		usleep(3000);
	}

	return NULL;
}

void start_timelines(void)
{
	int i;

	for (i = 0; i < NUM_TIMELINES; i++) {
		timelines[i].fd = open(SW_SYNC, O_RDWR | O_CLOEXEC);
		if (timelines[i].fd < 0)
			ksft_exit_fail_perror(SW_SYNC);
		pthread_mutex_init(&timelines[i].lock, NULL);
	}
	if (pthread_create(&thread, NULL, signal_fences, NULL))
		ksft_exit_fail_msg("cannot create a thread\n");
}

/*
 * Before they are closed: sw_sync is not good at that with fences that have not signalled. Other
 * threads may still run, but get no more fences.
 */
void end_timelines(void)
{
	int i;

	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	for (i = 0; i < NUM_TIMELINES; i++) {
		pthread_mutex_lock(&timelines[i].lock);
		advance(&timelines[i], timelines[i].next);
		close(timelines[i].fd);
		pthread_mutex_unlock(&timelines[i].lock);
	}
}

/*
 * A sync file whose fence the thread of the timelines signals in some milliseconds, or -errno.
 *
 * sw_sync cannot signal a fence of which the last reference goes away at the same time, so there is
 * always one more.
 */
static int create_fence(struct worker *w)
{
	struct timeline *line = &timelines[below(w, NUM_TIMELINES)];
	struct sw_sync_create_fence_data data = { .name = "stress" };
	int ret = -EAGAIN;

	pthread_mutex_lock(&line->lock);
	if (!atomic_load(&stop) && line->num_held < MAX_HELD) {
		data.value = ++line->next;
		ret = do_ioctl(line->fd, SW_SYNC_IOC_CREATE_FENCE, &data);
	}
	if (!ret) {
		ret = fcntl(data.fence, F_DUPFD_CLOEXEC, 0);
		if (ret < 0)
			ret = -errno;
		line->held[line->num_held].fd = data.fence;
		line->held[line->num_held++].value = data.value;
	}
	pthread_mutex_unlock(&line->lock);

	return ret;
}

static int create_merged_fence(struct worker *w)
{
	struct sync_merge_data data = { .name = "merged" };
	int fence = create_fence(w), ret;

	if (fence < 0)
		return fence;
	ret = create_fence(w);
	if (ret >= 0) {
		data.fd2 = ret;
		ret = do_ioctl(fence, SYNC_IOC_MERGE, &data);
		close(data.fd2);
	}
	close(fence);

	return ret < 0 ? ret : data.fence;
}

/* What there is without timelines is idle. */
static int any_fence(struct worker *w, int fd)
{
	if (!have(FENCES) || !below(w, 8))
		return export_sync_file(fd, DMA_BUF_SYNC_RW);

	return below(w, 4) ? create_fence(w) : create_merged_fence(w);
}

int import_fence(struct worker *w, int fd)
{
	struct dma_buf_import_sync_file arg = { .flags = 1 + below(w, DMA_BUF_SYNC_RW) };
	int ret;

	arg.fd = any_fence(w, fd);
	if (arg.fd < 0)
		return arg.fd;
	ret = do_ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg);
	close(arg.fd);

	return ret;
}

static int do_op_import(struct worker *w, struct buffer *buf, int arg)
{
	(void)arg;

	return import_fence(w, buf->fd);
}

DEFINE_SHARED_OP(op_import, false)

static int do_op_export(struct worker *w, struct buffer *buf, int arg)
{
	int events, sync_file = export_sync_file(buf->fd, 1 + below(w, DMA_BUF_SYNC_RW));

	(void)arg;
	if (sync_file < 0)
		return sync_file;
	events = wait_for(sync_file, POLLIN, below(w, 2) ? 0 : LATE * 1000);
	/* No fences are added to those that a sync file has. */
	if (!events && wait_for(sync_file, POLLIN, LATE * 1000) != POLLIN)
		late("sync file of buffer %u of %s has not signalled for %d s", buf->id,
		     need_names[buf->exporter], LATE);
	close(sync_file);

	return events < 0 ? events : 0;
}

DEFINE_SHARED_OP(op_export, false)

short any_events(struct worker *w)
{
	static const short events[] = { POLLIN, POLLOUT, POLL_RW };

	return events[below(w, ARRAY_SIZE(events))];
}

static int do_op_poll(struct worker *w, struct buffer *buf, int arg)
{
	int ret = wait_for(buf->fd, any_events(w), arg ? (int)below(w, arg) : 0);

	return ret < 0 ? ret : 0;
}

DEFINE_SHARED_OP(op_poll, false)

struct poller {
	const struct buffer *buf;
	short wanted;
	int ret;
};

static void *poll_until_ready(void *arg)
{
	struct poller *poller = arg;
	const struct buffer *buf = poller->buf;
	int ret = wait_for(buf->fd, poller->wanted, LATE * 1000);

	if (ret >= 0 && (!ret || (ret & ~poller->wanted)))
		late("poll of buffer %u of %s for %#x returned %#x", buf->id,
		     need_names[buf->exporter], poller->wanted, ret);
	poller->ret = ret < 0 ? ret : 0;

	return NULL;
}

/*
 * Two that wait for the same buffer. Nobody else adds fences, and those there are signal soon: a
 * wait that does not end is a bug.
 */
static int do_op_poll_wait(struct worker *w, struct buffer *buf, int arg)
{
	struct poller own = { .buf = buf, .wanted = any_events(w) };
	struct poller other = { .buf = buf, .wanted = any_events(w) };
	pthread_t second;
	int ret;

	(void)arg;
	ret = import_fence(w, buf->fd);
	if (ret < 0)
		return ret;
	ret = pthread_create(&second, NULL, poll_until_ready, &other);
	if (ret)
		return -ret;
	poll_until_ready(&own);
	pthread_join(second, NULL);

	return own.ret ? own.ret : other.ret;
}

DEFINE_SHARED_OP(op_poll_wait, true)

int epoll_and_close(struct worker *w, int fd, bool close_it)
{
	struct epoll_event event = { .events = any_events(w) };
	int ret = 0, epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0) {
		ret = -errno;
		if (close_it)
			close(fd);
		return ret;
	}
	if (below(w, 2))
		event.events |= EPOLLET;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		ret = -errno;
	if (!ret && epoll_wait(epoll, &event, 1, below(w, 3)) < 0)
		ret = -errno;
	if (close_it)
		close(fd);
	epoll_wait(epoll, &event, 1, below(w, 3));
	close(epoll);

	return ret;
}

/* The buffer lives, so the set keeps it after the descriptor is closed. */
static int do_op_epoll(struct worker *w, struct buffer *buf, int arg)
{
	int fd = fcntl(buf->fd, F_DUPFD_CLOEXEC, 0);

	(void)arg;

	return fd < 0 ? -errno : epoll_and_close(w, fd, true);
}

DEFINE_SHARED_OP(op_epoll, false)

/* The buffer goes away while it is in the set and a fence is yet to signal. */
int op_epoll_last(struct worker *w, int arg)
{
	struct buffer buf;
	int ret;

	(void)arg;
	ret = create_buffer(w, &buf, any_exporter(w));
	if (ret)
		return ret;
	ret = import_fence(w, buf.fd);
	if (!ret)
		return epoll_and_close(w, buf.fd, true);
	close(buf.fd);

	return ret;
}

/* A mapping keeps the buffer, also without a descriptor. */
int op_map_last(struct worker *w, int arg)
{
	struct buffer buf;
	void *map;
	int ret;

	(void)arg;
	ret = create_buffer(w, &buf, any_exporter(w));
	if (ret)
		return ret;
	if (below(w, 2))
		import_fence(w, buf.fd);
	map = mmap(NULL, buf.size, PROT_READ, MAP_SHARED, buf.fd, 0);
	ret = map == MAP_FAILED ? -errno : 0;
	close(buf.fd);
	if (ret)
		return ret;
	check_map("mapping after close", map, &buf);
	munmap(map, buf.size);

	return 0;
}
