// SPDX-License-Identifier: GPL-2.0
/*
 * The fences of a dma-buf: polling, sync files, and who waits for whom.
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/time.h>

#include <drm/vgem_drm.h>

#include "dmabuf.h"

static int merge_sync_files(int a, int b)
{
	struct sync_merge_data data = { .name = "merged", .fd2 = b };
	int ret = do_ioctl(a, SYNC_IOC_MERGE, &data);

	return ret < 0 ? ret : data.fence;
}

/* The buffer, with fences of the timelines a and b */

FIXTURE(fence) {
	struct buffer buf;
	int a, b;
};

EXPORTER_VARIANTS(fence);

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

/* FILE_INFO looks into containers by itself, so the list of buffers has to tell. */
TEST_F(fence, merged_is_unwrapped)
{
	int a, b, merged, count = 0;
	struct bufinfo_row row;
	const char *line;

	if (!read_bufinfo())
		SKIP(return, BUFINFO " cannot be read");
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

	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(self->buf.fd), &row));
	line = next_line(row.text);
	for (; starts_with(line, "\twrite fence:"); line = next_line(line))
		count++;
	EXPECT_EQ(2, count);
	EXPECT_TRUE(starts_with(line, "\tAttached Devices:\n"));
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
	(void)sig;
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

/* As long as a fence is pending, too, nothing but the two events counts. */
TEST_F(fence, poll_other_events)
{
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->a, 1));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLLPRI | POLLRDHUP | POLLERR | POLLHUP));
	EXPECT_EQ(POLLIN, poll_now(self->buf.fd, POLLPRI | POLLRDHUP | POLLRDNORM | POLLIN));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLLPRI | POLLRDHUP | POLLWRNORM | POLLOUT));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(POLLOUT, poll_now(self->buf.fd, POLLPRI | POLLRDHUP | POLLWRNORM | POLLOUT));
}

static void *poll_thread(void *arg)
{
	struct pollfd pfd = { .fd = *(int *)arg, .events = POLLOUT };

	return (void *)(long)(poll(&pfd, 1, TIMEOUT * 1000) == 1 ? pfd.revents : -1);
}

/*
 * The poller has no descriptor of its own: it shares the one that is closed. It is woken all the
 * same, and finds the descriptor gone.
 */
TEST_F(fence, close_in_another_thread)
{
	int fd = self->buf.fd;
	pthread_t thread;
	void *events;

	ASSERT_EQ(0, add_fence(fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, pthread_create(&thread, NULL, poll_thread, &fd));
	/* Either order is right, but this is the likely one. */
	usleep(100000);
	close(self->buf.fd);
	self->buf.fd = -1;
	ASSERT_EQ(0, advance(self->a));
	ASSERT_EQ(0, pthread_join(thread, &events));
	EXPECT_EQ(POLLNVAL, (long)events);
}

/* A later fence of a timeline takes the place of an earlier one. */
TEST_F(fence, same_timeline)
{
	int fd;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 2));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_READ);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(1, sync_file_num_fences(fd));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(0, sync_file_status(fd));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, advance(self->a));
	EXPECT_EQ(1, sync_file_status(fd));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	close(fd);
}

#define NUM_TIMELINES	40	/* more than room was made for at once */

TEST_F(fence, many_timelines)
{
	int timeline[NUM_TIMELINES], fd, i;

	for (i = 0; i < NUM_TIMELINES; i++) {
		timeline[i] = open(SW_SYNC, O_RDWR | O_CLOEXEC);
		ASSERT_GE(timeline[i], 0);
		ASSERT_EQ(0, add_fence(self->buf.fd, 1 + i % 2, timeline[i], 1));
	}
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_READ);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(NUM_TIMELINES / 2, sync_file_num_fences(fd));
	close(fd);
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(NUM_TIMELINES, sync_file_num_fences(fd));
	for (i = 0; i < NUM_TIMELINES; i++) {
		EXPECT_EQ(0, poll_now(self->buf.fd, POLLOUT));
		ASSERT_EQ(0, advance(timeline[i]));
		close(timeline[i]);
	}
	EXPECT_TRUE(sync_file_signals(fd));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	close(fd);
}

/* A descriptor that cannot be had changes nothing. */
TEST_F(fence, export_no_free_fd)
{
	struct rlimit limit, lower;
	int fd;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	lower = limit;
	lower.rlim_cur = dup(self->buf.fd);
	close(lower.rlim_cur);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lower));
	EXPECT_EQ(-EMFILE, export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));

	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	EXPECT_EQ(lower.rlim_cur, fd);
	EXPECT_EQ(1, sync_file_num_fences(fd));
	close(fd);
}

/*
 * Fences that fail: closing a timeline signals what is left of its fences with -ENOENT. Who waits
 * for access waits for the end of the work, whatever became of it.
 */

TEST_F(fence, failed)
{
	__u32 flags;
	int fd;

	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	ASSERT_GE(fd, 0);
	close(self->a);
	self->a = -1;

	EXPECT_EQ(-ENOENT, sync_file_status(fd));
	EXPECT_EQ(POLLIN, poll_now(fd, POLLIN));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	for (flags = DMA_BUF_SYNC_READ; flags <= DMA_BUF_SYNC_RW; flags++) {
		EXPECT_EQ(0, cpu_access(self->buf.fd, flags | DMA_BUF_SYNC_START));
		EXPECT_EQ(0, cpu_access(self->buf.fd, flags | DMA_BUF_SYNC_END));
	}
	close(fd);

	/* There is nothing left to wait for, and no error to tell. */
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(1, sync_file_status(fd));
	close(fd);
}

/* A poller that does not keep the timelines open. */
static pid_t fork_poller_without(int fd, int a, int b)
{
	struct pollfd pfd = { .fd = fd, .events = POLLOUT };
	pid_t pid = fork_child();

	if (!pid) {
		close(a);
		close(b);
		_exit(poll(&pfd, 1, -1) != 1 || pfd.revents != POLLOUT);
	}

	return pid;
}

TEST_F(fence, failed_while_polled)
{
	pid_t child;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, self->b, 1));
	child = fork_poller_without(self->buf.fd, self->a, self->b);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_sleeps(child));
	close(self->a);
	self->a = -1;
	EXPECT_EQ(POLLIN, poll_now(self->buf.fd, POLL_RW));
	EXPECT_TRUE(child_sleeps(child));
	close(self->b);
	self->b = -1;
	EXPECT_TRUE(child_succeeds(child));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

TEST_F(fence, failed_in_part)
{
	int fd;

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->a, 1));
	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, self->b, 1));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	ASSERT_GE(fd, 0);
	close(self->a);
	self->a = -1;
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	EXPECT_EQ(0, poll_now(fd, POLLIN));
	ASSERT_EQ(0, advance(self->b));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	EXPECT_FALSE(sync_file_signals(fd));
	EXPECT_EQ(-ENOENT, sync_file_status(fd));
	close(fd);
}

TEST_F(fence, import_failed)
{
	int fd = create_fence(self->a, 1);
	__u32 flags;

	ASSERT_GE(fd, 0);
	close(self->a);
	self->a = -1;
	ASSERT_EQ(-ENOENT, sync_file_status(fd));
	for (flags = DMA_BUF_SYNC_READ; flags <= DMA_BUF_SYNC_RW; flags++)
		EXPECT_EQ(0, import_sync_file(self->buf.fd, flags, fd));
	close(fd);
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

/*
 * Fences of a driver: vgem imports the buffer, and has somebody do as if it were working on it.
 * Unlike sw_sync this is for all users.
 */

FIXTURE(driver_fence) {
	struct buffer buf;
	int vgem;
	__u32 handle;
};

EXPORTER_VARIANTS(driver_fence);

FIXTURE_SETUP(driver_fence)
{
	self->vgem = vgem_open();
	if (self->vgem < 0)
		SKIP(return, "vgem: %s", strerror(errno));
	setup_buffer(_metadata, &self->buf, variant->exporter);
	if (self->buf.dev >= 0)
		ASSERT_EQ(0, vgem_import(self->vgem, self->buf.fd, &self->handle));
}

FIXTURE_TEARDOWN(driver_fence)
{
	close(self->vgem);
	teardown_buffer(&self->buf);
}

static int attach_fence(int vgem, __u32 handle, __u32 flags, __u32 *fence)
{
	struct drm_vgem_fence_attach arg = { .handle = handle, .flags = flags };
	int ret = do_ioctl(vgem, DRM_IOCTL_VGEM_FENCE_ATTACH, &arg);

	*fence = arg.out_fence;

	return ret;
}

static int signal_fence(int vgem, __u32 fence)
{
	struct drm_vgem_fence_signal arg = { .fence = fence };

	return do_ioctl(vgem, DRM_IOCTL_VGEM_FENCE_SIGNAL, &arg);
}

TEST_F(driver_fence, write)
{
	__u32 fence;
	int fd;

	ASSERT_EQ(0, attach_fence(self->vgem, self->handle, VGEM_FENCE_WRITE, &fence));
	EXPECT_EQ(0, poll_now(self->buf.fd, POLL_RW));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_READ);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, sync_file_status(fd));
	ASSERT_EQ(0, signal_fence(self->vgem, fence));
	EXPECT_EQ(1, sync_file_status(fd));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	close(fd);
}

TEST_F(driver_fence, read)
{
	__u32 fence;

	ASSERT_EQ(0, attach_fence(self->vgem, self->handle, 0, &fence));
	EXPECT_EQ(POLLIN, poll_now(self->buf.fd, POLL_RW));
	ASSERT_EQ(0, signal_fence(self->vgem, fence));
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
}

TEST_F(driver_fence, poll_wakes)
{
	__u32 fence;
	pid_t child;

	ASSERT_EQ(0, attach_fence(self->vgem, self->handle, VGEM_FENCE_WRITE, &fence));
	child = fork_poller(self->buf.fd, POLL_RW);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_sleeps(child));
	ASSERT_EQ(0, signal_fence(self->vgem, fence));
	EXPECT_TRUE(child_succeeds(child));
}

TEST_F(driver_fence, sync_waits)
{
	__u32 fence;
	pid_t child;

	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	ASSERT_EQ(0, attach_fence(self->vgem, self->handle, VGEM_FENCE_WRITE, &fence));
	child = fork_cpu_access(self->buf.fd, DMA_BUF_SYNC_READ | DMA_BUF_SYNC_START);
	ASSERT_GE(child, 0);
	EXPECT_TRUE(child_sleeps(child));
	ASSERT_EQ(0, signal_fence(self->vgem, fence));
	EXPECT_TRUE(child_succeeds(child));
}

/* What user space says counts for drivers: here one that refuses to touch what is in use. */
TEST_F(driver_fence, imported_sync_file)
{
	int other, fd;
	__u32 fence, second, handle;

	/* A fence from another buffer. */
	other = alloc_another(&self->buf);
	ASSERT_GE(other, 0);
	ASSERT_EQ(0, vgem_import(self->vgem, other, &handle));
	ASSERT_EQ(0, attach_fence(self->vgem, handle, VGEM_FENCE_WRITE, &fence));
	fd = export_sync_file(other, DMA_BUF_SYNC_READ);
	ASSERT_GE(fd, 0);

	ASSERT_EQ(0, import_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE, fd));
	EXPECT_EQ(-EBUSY, attach_fence(self->vgem, self->handle, VGEM_FENCE_WRITE, &second));
	EXPECT_EQ(-EBUSY, attach_fence(self->vgem, self->handle, 0, &second));
	ASSERT_EQ(0, signal_fence(self->vgem, fence));
	ASSERT_EQ(0, attach_fence(self->vgem, self->handle, VGEM_FENCE_WRITE, &second));
	EXPECT_EQ(0, signal_fence(self->vgem, second));
	close(fd);
	close(other);
}

TEST_HARNESS_MAIN
