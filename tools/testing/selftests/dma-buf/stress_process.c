// SPDX-License-Identifier: GPL-2.0
/*
 * For dmabuf_stress.c: buffers that are passed to other processes, and back.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "stress.h"

#define NUM_HELPERS	2
#define SETTLE		10	/* seconds to end */

struct helper {
	pthread_mutex_t lock;
	int socket;
	pid_t pid;
};

static struct helper helpers[NUM_HELPERS];

struct request {
	struct buffer buf;
	bool rename;
	bool give_back;
};

struct reply {
	int error;
	bool renamed;		/* whatever failed later */
	bool differs;
	struct difference difference;
};

static int send_fd(int socket, const void *data, size_t len, int fd)
{
	struct iovec iov = { (void *)data, len };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}

	return sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -errno;
}

/* The descriptor is -1 if there is none. */
static int receive_fd(int socket, void *data, size_t len, int *fd)
{
	struct iovec iov = { data, len };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);

	*fd = -1;
	if (n < 0)
		return -errno;
	if (CMSG_FIRSTHDR(&message) && control.header.cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(&control.header), sizeof(*fd));

	return n == (ssize_t)len ? 0 : -EPIPE;
}

static int use_received(int fd, struct request *request, struct reply *reply)
{
	struct buffer *buf = &request->buf;
	int ret;

	if (fd < 0)
		return -EBADF;
	ret = find_difference(fd, buf, &reply->difference, &reply->differs);
	if (ret)
		return ret;
	ret = wait_for(fd, POLL_RW, 0);
	if (ret < 0)
		return ret;
	if (request->rename) {
		ret = do_ioctl(fd, DMA_BUF_SET_NAME_B, buf->name);
		if (ret < 0)
			return ret;
		reply->renamed = true;
	}
	ret = cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START);

	return ret ? ret : cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END);
}

/* Returns when the other side has closed its end. */
static void help(int socket)
{
	struct request request;
	int fd;

	while (!receive_fd(socket, &request, sizeof(request), &fd)) {
		struct reply reply = {};

		reply.error = use_received(fd, &request, &reply);
		if (request.give_back || fd < 0) {
			send_fd(socket, &reply, sizeof(reply), fd);
			if (fd >= 0)
				close(fd);
		} else {
			/* The reply says that it is closed. */
			close(fd);
			send_fd(socket, &reply, sizeof(reply), -1);
		}
	}
}

static struct helper *lock_helper(struct worker *w)
{
	int i, start = below(w, NUM_HELPERS);

	for (i = 0; i < NUM_HELPERS; i++) {
		struct helper *helper = &helpers[(start + i) % NUM_HELPERS];

		if (!pthread_mutex_trylock(&helper->lock))
			return helper;
	}

	return NULL;
}

/* Have the buffer used by another process. If it is not to come back, it is closed here. */
static int pass(struct helper *helper, struct request *request, struct reply *reply)
{
	struct buffer *buf = &request->buf;
	int ret, fd;

	ret = send_fd(helper->socket, request, sizeof(*request), buf->fd);
	if (!request->give_back)
		close(buf->fd);
	if (ret)
		return ret;
	ret = receive_fd(helper->socket, reply, sizeof(*reply), &fd);
	if (ret)
		return ret;
	if (reply->differs)
		report_difference("another process", buf, &reply->difference);
	ret = reply->error;
	if (fd >= 0) {
		if (!ret)
			ret = check_fd("given back", fd, buf);
		close(fd);
	} else if (request->give_back && !ret) {
		ret = -EBADF;
	}

	return ret;
}

static int do_op_send(struct worker *w, struct buffer *buf, int arg)
{
	struct helper *helper = lock_helper(w);
	struct request request = {
		.buf = *buf,
		.give_back = true,
		.rename = below(w, 2),
	};
	struct reply reply = {};
	int ret;

	(void)arg;
	if (!helper)
		return NOTHING;
	if (request.rename)
		random_name(w, request.buf.name, sizeof(request.buf.name) - 1);
	ret = pass(helper, &request, &reply);
	pthread_mutex_unlock(&helper->lock);
	if (reply.renamed) {
		strcpy(buf->name, request.buf.name);
		buf->named = true;
	}

	return ret;
}

DEFINE_SHARED_OP(op_send, true)

/* The other process has the last reference. */
int op_send_last(struct worker *w, int arg)
{
	struct request request = {};
	struct reply reply = {};
	struct helper *helper;
	int ret;

	(void)arg;
	helper = lock_helper(w);
	if (!helper)
		return NOTHING;
	ret = create_buffer(w, &request.buf, any_exporter(w));
	if (!ret) {
		if (below(w, 2))
			import_fence(w, request.buf.fd);
		ret = pass(helper, &request, &reply);
	}
	pthread_mutex_unlock(&helper->lock);

	return ret;
}

/* The last reference is in a message that nobody receives. */
int op_send_lost(struct worker *w, int arg)
{
	int sockets[2], ret;
	struct buffer buf;

	(void)arg;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
		return -errno;
	ret = create_buffer(w, &buf, any_exporter(w));
	if (!ret) {
		ret = send_fd(sockets[0], "", 1, buf.fd);
		close(buf.fd);
	}
	close(sockets[0]);
	close(sockets[1]);

	return ret;
}

/* Before there is anything that a child would hold on to. */
void start_helpers(void)
{
	int i, j, sockets[2];

	fflush(stdout);
	for (i = 0; i < NUM_HELPERS; i++) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
			ksft_exit_fail_perror("socketpair");
		helpers[i].pid = fork();
		if (helpers[i].pid < 0)
			ksft_exit_fail_perror("fork");
		if (!helpers[i].pid) {
			for (j = 0; j < i; j++)
				close(helpers[j].socket);
			close(sockets[0]);
			help(sockets[1]);
			_exit(0);
		}
		close(sockets[1]);
		helpers[i].socket = sockets[0];
		pthread_mutex_init(&helpers[i].lock, NULL);
	}
}

/* For signal handlers, too. */
void kill_helpers(void)
{
	int i;

	for (i = 0; i < NUM_HELPERS; i++) {
		if (helpers[i].pid > 0)
			kill(helpers[i].pid, SIGKILL);
	}
}

/* Returns whether all have ended by themselves. */
bool reap_helpers(void)
{
	double start = now();
	bool good = true;
	int i, status;
	pid_t pid;

	for (i = 0; i < NUM_HELPERS; i++)
		close(helpers[i].socket);
	for (i = 0; i < NUM_HELPERS; i++) {
		do {
			pid = waitpid(helpers[i].pid, &status, WNOHANG);
			usleep(pid ? 0 : 10000);
		} while (!pid && now() - start < SETTLE);
		if (!pid) {
			kill(helpers[i].pid, SIGKILL);
			say("helper %d does not end", i);
			good = false;
		} else if (pid < 0 || !WIFEXITED(status) || WEXITSTATUS(status)) {
			say("helper %d ended with status %#x", i, status);
			good = false;
		}
		helpers[i].pid = 0;
	}

	return good;
}
