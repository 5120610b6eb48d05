/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of the V4L2 drivers in Rust share: video devices, their queues and buffers, frames
 * that show their number, and other tasks.
 *
 * RUST_V4L2_CAPTURE and RUST_V4L2_M2M are names of other video devices to test instead of
 * rust_vivid and rust_vim2m, such as vivid-000-vid-cap and vim2m. What those do in another way is
 * skipped then.
 */
#ifndef RUST_V4L2_H
#define RUST_V4L2_H

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <linux/videodev2.h>

#include "kselftest_harness.h"

#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define CLASS		"/sys/class/video4linux"

#define CAPTURE		V4L2_BUF_TYPE_VIDEO_CAPTURE
#define OUTPUT		V4L2_BUF_TYPE_VIDEO_OUTPUT

#define TIMEOUT		10	/* seconds for what has to happen */
#define WIDTH		64
#define HEIGHT		48
#define NUM_BUFS	4
#define MAX_BUFS	8
#define NSEC		1000000000LL

/* Of vim2m: how long a job takes, in ms. */
#define CID_TRANS_TIME	(V4L2_CID_USER_BASE + 0x1000)

static inline const char *capture_name(void)
{
	return getenv("RUST_V4L2_CAPTURE") ?: "rust_vivid";
}

static inline const char *m2m_name(void)
{
	return getenv("RUST_V4L2_M2M") ?: "rust_vim2m";
}

static inline bool is_rust(const char *name)
{
	return !strncmp(name, "rust_", 5);
}

/* What an ioctl returns, or -errno. */
static inline int do_ioctl(int fd, unsigned long cmd, void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

static inline void sleep_ms(long ms)
{
	struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

/* Of the monotonic clock, as that of buffers. */
static inline long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);

	return time.tv_sec * NSEC + time.tv_nsec;
}

static inline long long timestamp(const struct v4l2_buffer *buf)
{
	return buf->timestamp.tv_sec * NSEC + buf->timestamp.tv_usec * 1000LL;
}

/* The number in the last line of bufinfo: "Total %d objects, ...", or -1. */
static inline int num_buffers(void)
{
	char line[256];
	int count = -1;
	FILE *f = fopen(BUFINFO, "re");

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		sscanf(line, "Total %d objects", &count);
	fclose(f);

	return count;
}

/* The same, as soon as it is what it should be: threads of the kernel may give up the last one. */
static inline int num_buffers_is(int expected)
{
	int i, count = num_buffers();

	for (i = 0; count != expected && i < 200; i++) {
		sleep_ms(10);
		count = num_buffers();
	}

	return count;
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

/*
 * Devices
 */

/* The number N of the video device /dev/videoN that has this name, or -1. */
static inline int find_node(const char *name)
{
	char path[PATH_MAX], line[64];
	int number, found = -1;
	struct dirent *entry;
	FILE *f;
	DIR *dir = opendir(CLASS);

	if (!dir)
		return -1;
	while (found < 0 && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "video%d", &number) != 1)
			continue;
		snprintf(path, sizeof(path), CLASS "/%s/name", entry->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fgets(line, sizeof(line), f)) {
			line[strcspn(line, "\n")] = '\0';
			if (!strcmp(line, name))
				found = number;
		}
		fclose(f);
	}
	closedir(dir);

	return found;
}

/* A new file of the video device, or -errno. */
static inline int open_node(const char *name, int flags)
{
	int fd, number = find_node(name);
	char path[32];

	if (number < 0)
		return -ENODEV;
	snprintf(path, sizeof(path), "/dev/video%d", number);
	fd = open(path, O_RDWR | O_CLOEXEC | flags);

	return fd < 0 ? -errno : fd;
}

static inline bool set_bound(const char *driver, const char *device, bool bound)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "/sys/bus/platform/drivers/%s/%s", driver,
		 bound ? "bind" : "unbind");

	return write_text(path, device);
}

/* Whether a program succeeds; modprobe. */
static inline bool run(const char *program, const char *option, const char *arg)
{
	int status, null;
	pid_t pid = fork();

	if (!pid) {
		null = open("/dev/null", O_RDWR);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		execlp(program, program, option, arg, NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return false;

	return WIFEXITED(status) && !WEXITSTATUS(status);
}

/*
 * Queues
 */

struct plane {
	unsigned char *map;
	size_t size;
	int fd;			/* the dma-buf: of EXPBUF, or to import */
};

struct queue {
	int fd;
	__u32 type;
	__u32 memory;
	struct v4l2_pix_format pix;
	unsigned int num;
	struct plane planes[MAX_BUFS];
};

static inline int set_format(struct queue *q, __u32 fourcc, __u32 width, __u32 height)
{
	struct v4l2_format format = {
		.type = q->type,
		.fmt.pix = { .width = width, .height = height, .pixelformat = fourcc },
	};
	int ret = do_ioctl(q->fd, VIDIOC_S_FMT, &format);

	if (ret)
		return ret;
	q->pix = format.fmt.pix;

	return q->pix.pixelformat == fourcc ? 0 : -ENOENT;
}

static inline int set_interval(int fd, __u32 numerator, __u32 denominator)
{
	struct v4l2_streamparm parm = {
		.type = CAPTURE,
		.parm.capture.timeperframe = { numerator, denominator },
	};
	const struct v4l2_fract *fract = &parm.parm.capture.timeperframe;
	int ret = do_ioctl(fd, VIDIOC_S_PARM, &parm);

	if (ret)
		return ret;

	return (__u64)fract->numerator * denominator == (__u64)fract->denominator * numerator ?
		0 : -ENOENT;
}

static inline int set_ctrl(int fd, __u32 id, __s32 value)
{
	struct v4l2_control ctrl = { .id = id, .value = value };

	return do_ioctl(fd, VIDIOC_S_CTRL, &ctrl);
}

static inline int request(struct queue *q, __u32 memory, __u32 count)
{
	struct v4l2_requestbuffers req = {
		.count = count,
		.type = q->type,
		.memory = memory,
	};
	int i, ret = do_ioctl(q->fd, VIDIOC_REQBUFS, &req);

	if (ret)
		return ret;
	if (req.count > MAX_BUFS)
		return -E2BIG;
	q->memory = memory;
	q->num = req.count;
	for (i = 0; i < MAX_BUFS; i++)
		q->planes[i] = (struct plane){ .map = MAP_FAILED, .fd = -1 };

	return req.count;
}

static inline int stream(struct queue *q, bool on)
{
	return do_ioctl(q->fd, on ? VIDIOC_STREAMON : VIDIOC_STREAMOFF, &q->type);
}

static inline void drop_plane(struct plane *plane)
{
	if (plane->map != MAP_FAILED)
		munmap(plane->map, plane->size);
	if (plane->fd >= 0)
		close(plane->fd);
	plane->map = MAP_FAILED;
	plane->fd = -1;
}

/* Ends streaming, and frees all that the queue has. */
static inline void release(struct queue *q)
{
	unsigned int i;

	if (q->num) {
		stream(q, false);
		for (i = 0; i < q->num; i++)
			drop_plane(&q->planes[i]);
		request(q, q->memory, 0);
	}
	q->num = 0;
}

/* Maps a buffer that belongs to the queue. */
static inline int map_plane(struct queue *q, unsigned int index)
{
	struct plane *plane = &q->planes[index];
	struct v4l2_buffer buf = {
		.index = index,
		.type = q->type,
		.memory = q->memory,
	};
	int ret = do_ioctl(q->fd, VIDIOC_QUERYBUF, &buf);

	if (ret)
		return ret;
	plane->size = buf.length;
	plane->map = mmap(NULL, buf.length, PROT_READ | PROT_WRITE, MAP_SHARED, q->fd,
			  buf.m.offset);

	return plane->map == MAP_FAILED ? -errno : 0;
}

/* REQBUFS and mmap, or -errno. */
static inline int allocate(struct queue *q, unsigned int count)
{
	unsigned int i;
	int ret = request(q, V4L2_MEMORY_MMAP, count);

	if (ret < 0)
		return ret;
	for (i = 0; i < q->num; i++) {
		ret = map_plane(q, i);
		if (ret)
			return ret;
	}

	return 0;
}

static inline int export(const struct queue *q, unsigned int index, __u32 flags)
{
	struct v4l2_exportbuffer buf = {
		.type = q->type,
		.index = index,
		.flags = flags,
	};
	int ret = do_ioctl(q->fd, VIDIOC_EXPBUF, &buf);

	return ret ? ret : buf.fd;
}

/* A mapping of a dma-buf of at least this size. */
static inline unsigned char *map_fd(int fd, size_t size, int prot)
{
	return mmap(NULL, size, prot, MAP_SHARED, fd, 0);
}

static inline int sync_fd(int fd, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return do_ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
}

/* A dma-buf of an exporter that has nothing to do with V4L2, or -errno. */
static inline int foreign_buffer(size_t size)
{
	size_t page = getpagesize();
	struct dma_heap_allocation_data data = {
		.len = (size + page - 1) / page * page,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	struct udmabuf_create create = {
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = data.len,
	};
	int memfd, ret, dev = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC);

	if (dev >= 0) {
		ret = do_ioctl(dev, DMA_HEAP_IOCTL_ALLOC, &data);
		close(dev);

		return ret ? ret : (int)data.fd;
	}

	dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -errno;
	memfd = memfd_create("rust-v4l2", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	create.memfd = memfd;
	ret = -EINVAL;
	if (memfd >= 0 && !ftruncate(memfd, create.size) &&
	    !fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		ret = do_ioctl(dev, UDMABUF_CREATE, &create);
	close(memfd);
	close(dev);

	return ret;
}

static inline bool have_foreign_buffers(void)
{
	int fd = foreign_buffer(1);

	if (fd < 0)
		return false;
	close(fd);

	return true;
}

#define NO_FOREIGN_BUFFERS	"needs /dev/dma_heap/system or /dev/udmabuf"

/* REQBUFS, with foreign buffers to import, or -errno. */
static inline int import_foreign(struct queue *q, unsigned int count)
{
	struct plane *plane;
	unsigned int i;
	int ret = request(q, V4L2_MEMORY_DMABUF, count);

	if (ret < 0)
		return ret;
	for (i = 0; i < q->num; i++) {
		plane = &q->planes[i];
		plane->fd = foreign_buffer(q->pix.sizeimage);
		if (plane->fd < 0)
			return plane->fd;
		plane->size = q->pix.sizeimage;
		plane->map = map_fd(plane->fd, plane->size, PROT_READ | PROT_WRITE);
		if (plane->map == MAP_FAILED)
			return -errno;
	}

	return 0;
}

/* QBUF; of a queue with DMABUF, of the file fd, which is said to be so large. */
static inline int enqueue_fd(struct queue *q, unsigned int index, int fd, __u32 length,
			     long long time)
{
	struct v4l2_buffer buf = {
		.index = index,
		.type = q->type,
		.memory = q->memory,
		.field = V4L2_FIELD_NONE,
	};

	if (q->type == OUTPUT) {
		buf.bytesused = q->pix.sizeimage;
		buf.timestamp.tv_sec = time / NSEC;
		buf.timestamp.tv_usec = time % NSEC / 1000;
	}
	if (q->memory == V4L2_MEMORY_DMABUF) {
		buf.m.fd = fd;
		buf.length = length;
	}

	return do_ioctl(q->fd, VIDIOC_QBUF, &buf);
}

static inline int enqueue_at(struct queue *q, unsigned int index, long long time)
{
	return enqueue_fd(q, index, q->planes[index].fd, q->pix.sizeimage, time);
}

static inline int enqueue(struct queue *q, unsigned int index)
{
	return enqueue_at(q, index, 0);
}

static inline int enqueue_all(struct queue *q)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; !ret && i < q->num; i++)
		ret = enqueue(q, i);

	return ret;
}

/* DQBUF as it is: the index, or -errno. */
static inline int dequeue_raw(const struct queue *q, struct v4l2_buffer *buf)
{
	int ret;

	*buf = (struct v4l2_buffer){ .type = q->type, .memory = q->memory };
	ret = do_ioctl(q->fd, VIDIOC_DQBUF, buf);

	return ret ? ret : (int)buf->index;
}

/* DQBUF of a file that does not block, when there is a frame: the index, or -errno. */
static inline int dequeue(const struct queue *q, struct v4l2_buffer *buf)
{
	struct pollfd poll_fd = {
		.fd = q->fd,
		.events = q->type == OUTPUT ? POLLOUT : POLLIN,
	};
	long long end = now() + TIMEOUT * NSEC;
	int ret;

	while ((ret = dequeue_raw(q, buf)) == -EAGAIN) {
		if (now() > end)
			return -ETIMEDOUT;
		/* With nothing queued at all there is an error, at once. */
		if (poll(&poll_fd, 1, 1000) > 0 && poll_fd.revents & POLLERR)
			sleep_ms(1);
	}
	if (ret >= 0 && buf->flags & V4L2_BUF_FLAG_ERROR)
		return -EBADMSG;

	return ret;
}

/*
 * Frames of rust_vivid
 */

#define TORN	(-1)	/* not all of it is of one frame */
#define BAD	(-2)	/* it has no counter, or nothing but it */

static inline unsigned int bytes_per_pixel(__u32 fourcc)
{
	switch (fourcc) {
	case V4L2_PIX_FMT_XRGB32:
		return 4;
	case V4L2_PIX_FMT_RGB24:
		return 3;
	case V4L2_PIX_FMT_RGB565:
	case V4L2_PIX_FMT_YUYV:
		return 2;
	default:
		return 1;
	}
}

static inline const unsigned char *pixel_at(const unsigned char *frame,
					    const struct v4l2_pix_format *pix, unsigned int x,
					    unsigned int y)
{
	return frame + y * pix->bytesperline + x * bytes_per_pixel(pix->pixelformat);
}

/* The colour of a pixel, 0xrrggbb. */
static inline __u32 get_rgb(const unsigned char *frame, const struct v4l2_pix_format *pix,
			    unsigned int x, unsigned int y)
{
	const unsigned char *p = pixel_at(frame, pix, x, y);
	unsigned int r, g, b;

	switch (pix->pixelformat) {
	case V4L2_PIX_FMT_RGB24:
		return p[0] << 16 | p[1] << 8 | p[2];
	case V4L2_PIX_FMT_XRGB32:
		return p[1] << 16 | p[2] << 8 | p[3];
	case V4L2_PIX_FMT_RGB565:
		r = p[1] >> 3;
		g = (p[1] & 7) << 3 | p[0] >> 5;
		b = p[0] & 31;
		return (r << 3 | r >> 2) << 16 | (g << 2 | g >> 4) << 8 | (b << 3 | b >> 2);
	default:
		return p[0] * 0x10101;
	}
}

static inline void put_rgb(unsigned char *frame, const struct v4l2_pix_format *pix, unsigned int x,
			   unsigned int y, __u32 rgb)
{
	unsigned char *p = (unsigned char *)pixel_at(frame, pix, x, y);
	unsigned char r = rgb >> 16, g = rgb >> 8, b = rgb;

	switch (pix->pixelformat) {
	case V4L2_PIX_FMT_RGB24:
		p[0] = r;
		p[1] = g;
		p[2] = b;
		break;
	case V4L2_PIX_FMT_XRGB32:
		p[0] = x;
		p[1] = r;
		p[2] = g;
		p[3] = b;
		break;
	case V4L2_PIX_FMT_RGB565:
		p[0] = (g & 0x1c) << 3 | b >> 3;
		p[1] = (r & 0xf8) | g >> 5;
		break;
	default:
		p[0] = g;
	}
}

/* How bright a pixel is, 0 to 255. */
static inline int brightness(const unsigned char *frame, const struct v4l2_pix_format *pix,
			     unsigned int x, unsigned int y)
{
	__u32 rgb = get_rgb(frame, pix, x, y);

	return ((rgb >> 16) + 2 * (rgb >> 8 & 0xff) + (rgb & 0xff)) / 4;
}

static inline unsigned int band_height(const struct v4l2_pix_format *pix)
{
	return pix->height < 32 ? 1 : pix->height / 16;
}

/* Whether all rows of a plane from first to end are equal. */
static inline bool rows_equal(const unsigned char *plane, const struct v4l2_pix_format *pix,
			      unsigned int first, unsigned int end)
{
	unsigned int y, line = pix->width * bytes_per_pixel(pix->pixelformat);

	for (y = first + 1; y < end; y++)
		if (memcmp(plane + first * pix->bytesperline, plane + y * pix->bytesperline, line))
			return false;

	return true;
}

/*
 * The counter of a frame with colour bars, or TORN, or BAD: sixteen cells at the top and at the
 * bottom that are its bits, and between them rows that are all equal.
 */
static inline int counter_of(const unsigned char *frame, const struct v4l2_pix_format *pix)
{
	unsigned int height = pix->height, width = pix->width, cell = width / 16;
	unsigned int band = band_height(pix), x;
	const unsigned char *chroma = frame + height * pix->bytesperline;
	int value, low = 255, high = 0, counter = 0;

	if (!rows_equal(frame, pix, 0, band) || !rows_equal(frame, pix, height - band, height) ||
	    !rows_equal(frame, pix, band, height - band) ||
	    memcmp(frame, pixel_at(frame, pix, 0, height - band),
		   width * bytes_per_pixel(pix->pixelformat)))
		return TORN;
	/* A row of colours is of two rows; where a band ends, of different ones. */
	if (pix->pixelformat == V4L2_PIX_FMT_NV12 &&
	    (!rows_equal(chroma, pix, 0, band / 2) ||
	     !rows_equal(chroma, pix, (band + 1) / 2, (height - band) / 2) ||
	     !rows_equal(chroma, pix, (height - band + 1) / 2, height / 2)))
		return TORN;

	for (x = 0; x < width; x++) {
		value = brightness(frame, pix, x, 0);
		if (x < 16 * cell && value > 200) {
			if (x % cell == 0)
				counter |= 1 << x / cell;
			else if (!(counter & 1 << x / cell))
				return BAD;
		} else if (value > 50 || (x < 16 * cell && counter & 1 << x / cell)) {
			return BAD;
		}

		value = brightness(frame, pix, x, height / 2);
		low = value < low ? value : low;
		high = value > high ? value : high;
	}

	return high - low > 100 ? counter : BAD;
}

/*
 * Expects that a buffer that was dequeued from the capture device has its own frame: the number is
 * that of the frame.
 */
#define EXPECT_FRAME(q, buf, frame) do {						\
	if (is_rust(capture_name()))							\
		EXPECT_EQ((int)((buf)->sequence & 0xffff), counter_of(frame, &(q)->pix));	\
} while (0)

/* Buffers of its own, all of them queued, and streaming. */
static inline void start_capture(struct __test_metadata *_metadata, struct queue *q,
				 unsigned int count)
{
	ASSERT_EQ(0, allocate(q, count));
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
}

/* Frames come, into the buffers that were queued, and they are what they should be. */
static inline void expect_frames(struct __test_metadata *_metadata, struct queue *q, int count)
{
	struct v4l2_buffer buf;
	int i, index;

	for (i = 0; i < count; i++) {
		index = dequeue(q, &buf);
		ASSERT_GE(index, 0);
		ASSERT_EQ(q->pix.sizeimage, buf.bytesused);
		EXPECT_FRAME(q, &buf, q->planes[index].map);
		ASSERT_EQ(0, enqueue(q, index));
	}
}

struct worker {
	pthread_t thread;
	struct queue *q;
	atomic_int *stop;
	atomic_int frames;
	int ret;		/* what ended it */
};

/* Dequeues and enqueues, blocking, until there is an error. */
static inline void *cycle(void *arg)
{
	struct worker *worker = arg;
	struct v4l2_buffer buf;
	int ret;

	do {
		ret = dequeue_raw(worker->q, &buf);
		if (ret >= 0) {
			worker->frames++;
			ret = enqueue(worker->q, buf.index);
		}
	} while (!ret);
	worker->ret = ret;

	return NULL;
}

/* The same, but errors are expected, until it is told to stop. */
static inline void *cycle_on(void *arg)
{
	struct worker *worker = arg;
	struct v4l2_buffer buf;

	while (!*worker->stop) {
		if (dequeue_raw(worker->q, &buf) >= 0) {
			worker->frames++;
			enqueue(worker->q, buf.index);
		} else {
			sched_yield();
		}
	}

	return NULL;
}

/* Whether it ends in time. */
static inline bool join(struct worker *worker)
{
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	time.tv_sec += TIMEOUT;

	return !pthread_timedjoin_np(worker->thread, NULL, &time);
}

/*
 * Memory to memory
 */

struct m2m {
	struct queue out;
	struct queue cap;
};

static inline int m2m_open(struct m2m *m2m, int flags)
{
	int fd = open_node(m2m_name(), flags);

	memset(m2m, 0, sizeof(*m2m));
	m2m->out.fd = fd;
	m2m->out.type = OUTPUT;
	m2m->cap.fd = fd;
	m2m->cap.type = CAPTURE;
	if (fd >= 0 && !is_rust(m2m_name()))
		set_ctrl(fd, CID_TRANS_TIME, 1);

	return fd;
}

static inline void m2m_close(struct m2m *m2m)
{
	release(&m2m->out);
	release(&m2m->cap);
	close(m2m->out.fd);
}

static inline int m2m_set_format(struct m2m *m2m, __u32 out, __u32 cap, __u32 width, __u32 height)
{
	int ret = set_format(&m2m->out, out, width, height);

	return ret ? ret : set_format(&m2m->cap, cap, width, height);
}

static inline int m2m_stream(struct m2m *m2m, bool on)
{
	int ret = stream(&m2m->out, on);

	return ret ? ret : stream(&m2m->cap, on);
}

/* The pixels of image number seed: no row is like another one, no column, no image. */
static inline __u32 image(unsigned int seed, unsigned int x, unsigned int y)
{
	unsigned char r = x * 4 + seed * 5, g = y * 5 + seed * 7, b = (x ^ y) * 11 + seed * 3;

	return r << 16 | g << 8 | b;
}

static inline void draw_image(unsigned char *frame, const struct v4l2_pix_format *pix,
			      unsigned int seed)
{
	unsigned int x, y;

	for (y = 0; y < pix->height; y++)
		for (x = 0; x < pix->width; x++)
			put_rgb(frame, pix, x, y, image(seed, x, y));
}

/* What differs most in one of the three colours. */
static inline int distance(__u32 a, __u32 b)
{
	int shift, diff, max = 0;

	for (shift = 0; shift < 24; shift += 8) {
		diff = abs((int)(a >> shift & 0xff) - (int)(b >> shift & 0xff));
		max = diff > max ? diff : max;
	}

	return max;
}

/* By how much a frame differs from another, mirrored and scaled, which may be of another format. */
static inline int compare(const unsigned char *a, const struct v4l2_pix_format *pa,
			  const unsigned char *b, const struct v4l2_pix_format *pb, bool hflip,
			  bool vflip)
{
	unsigned int x, y, bx, by;
	int diff, max = 0;

	for (y = 0; y < pa->height; y++) {
		for (x = 0; x < pa->width; x++) {
			bx = (hflip ? pa->width - 1 - x : x) * pb->width / pa->width;
			by = (vflip ? pa->height - 1 - y : y) * pb->height / pa->height;
			diff = distance(get_rgb(a, pa, x, y), get_rgb(b, pb, bx, by));
			max = diff > max ? diff : max;
		}
	}

	return max;
}

/* One job from one buffer to another, to its end: 0, or -errno. */
static inline int job(struct m2m *m2m, unsigned int out, unsigned int cap, long long time)
{
	struct v4l2_buffer buf;
	int ret;

	ret = enqueue(&m2m->cap, cap);
	if (ret)
		return ret;
	ret = enqueue_at(&m2m->out, out, time);
	if (ret)
		return ret;
	ret = dequeue(&m2m->cap, &buf);
	if (ret < 0)
		return ret;
	if (ret != (int)cap || timestamp(&buf) != time || buf.bytesused != m2m->cap.pix.sizeimage)
		return -EBADE;
	ret = dequeue(&m2m->out, &buf);
	if (ret < 0)
		return ret;

	return ret == (int)out ? 0 : -EBADE;
}

/* Buffers of its own on both sides, none queued, and streaming. */
static inline void start_m2m(struct __test_metadata *_metadata, struct m2m *m2m, unsigned int count)
{
	ASSERT_EQ(0, allocate(&m2m->out, count));
	ASSERT_EQ(0, allocate(&m2m->cap, count));
	ASSERT_EQ(0, m2m_stream(m2m, true));
}

/* A job with an image of its own does what it should. */
static inline void expect_job(struct __test_metadata *_metadata, struct m2m *m2m, unsigned int out,
			      unsigned int cap, unsigned int seed)
{
	draw_image(m2m->out.planes[out].map, &m2m->out.pix, seed);
	memset(m2m->cap.planes[cap].map, 0x55, m2m->cap.pix.sizeimage);
	ASSERT_EQ(0, job(m2m, out, cap, (seed + 1) * NSEC));
	EXPECT_EQ(0, compare(m2m->cap.planes[cap].map, &m2m->cap.pix,
			     m2m->out.planes[out].map, &m2m->out.pix, false, false));
}

/* A device that nobody has loaded, or that a test before was killed without binding it again. */
static inline void prepare_device(const char *name)
{
	if (geteuid() || !is_rust(name) || find_node(name) >= 0)
		return;
	run("modprobe", "-q", name);
	if (find_node(name) < 0)
		set_bound(name, name, true);
}

#endif /* RUST_V4L2_H */
