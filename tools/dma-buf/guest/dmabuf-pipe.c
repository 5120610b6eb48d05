// SPDX-License-Identifier: GPL-2.0
/*
 * dmabuf-pipe - move frames from a V4L2 capture device (vivid) through a V4L2
 * mem2mem device (vim2m) in shared dma-bufs, and verify every one of them.
 *
 *   capture device --(4 shared dma-bufs)--> m2m OUTPUT ... m2m CAPTURE --> check
 *
 * The shared dma-bufs come from one of the devices (VIDIOC_EXPBUF) or from a
 * dma-buf heap, and whoever did not make them imports them. Buffer i of the
 * capture queue and buffer i of the m2m OUTPUT queue are the same memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/videodev2.h>

#define NUM_BUFS	4
#define TIMEOUT_MS	10000
#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define EXIT_USAGE	2
#define EXIT_SKIP	4	/* what kselftest takes for "skipped" */

struct queue {
	const char *path;	/* of the device */
	const char *name;	/* of the queue, for messages */
	int fd;
	__u32 type;
	__u32 memory;
};

static struct queue capture = { .name = "capture", .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
static struct queue input = { .name = "m2m output", .type = V4L2_BUF_TYPE_VIDEO_OUTPUT };
static struct queue result = { .name = "m2m capture", .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };

/* The shared buffers, and those for the results, which only the m2m device and we see. */
static int shared_fd[NUM_BUFS];
static unsigned char *shared_map[NUM_BUFS];
static unsigned char *result_map[NUM_BUFS];

static const char *export, *out, *heap = "/dev/dma_heap/system";
static const char *exporter_path;
static unsigned int frames, width, height;
static int flip, bufinfo;
static size_t line_size, frame_size;	/* in bytes; RGB24 without any padding */

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "dmabuf-pipe: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(EXIT_FAILURE);
}

#define QUEUE_DIE(q, fmt, ...) \
	die("%s (%s queue): " fmt, (q)->path, (q)->name, __VA_ARGS__)

#define QUEUE_IOCTL(q, request, arg)						\
	do {									\
		if (ioctl((q)->fd, request, arg) < 0)				\
			QUEUE_DIE(q, "%s: %s", #request, strerror(errno));	\
	} while (0)

static void __attribute__((noreturn)) usage(void)
{
	fprintf(stderr,
		"usage: dmabuf-pipe --capture /dev/videoX --m2m /dev/videoY\n"
		"                   --export capture|m2m|heap [--heap /dev/dma_heap/NAME]\n"
		"                   [--frames N] [--flip] [--size WxH] [--out PREFIX] [--bufinfo]\n");
	exit(EXIT_USAGE);
}

static int open_device(const char *path)
{
	/* Not blocking: only poll() waits, and not for ever. */
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 && errno == ENOENT) {
		fprintf(stderr, "dmabuf-pipe: SKIP: there is no %s\n", path);
		exit(EXIT_SKIP);
	}
	if (fd < 0)
		die("%s: open: %s", path, strerror(errno));
	return fd;
}

static void open_queue(struct queue *q, __u32 need, struct v4l2_capability *cap)
{
	q->fd = open_device(q->path);
	QUEUE_IOCTL(q, VIDIOC_QUERYCAP, cap);
	need |= V4L2_CAP_STREAMING;
	if ((cap->device_caps & need) != need)
		QUEUE_DIE(q, "has capabilities %#x, needs %#x", cap->device_caps, need);
}

static void set_format(const struct queue *q)
{
	struct v4l2_format f = { .type = q->type };
	struct v4l2_pix_format *pix = &f.fmt.pix;

	pix->width = width;
	pix->height = height;
	pix->pixelformat = V4L2_PIX_FMT_RGB24;
	pix->field = V4L2_FIELD_NONE;
	QUEUE_IOCTL(q, VIDIOC_S_FMT, &f);
	if (pix->width != width || pix->height != height || pix->field != V4L2_FIELD_NONE ||
	    pix->pixelformat != V4L2_PIX_FMT_RGB24)
		QUEUE_DIE(q, "asked for %ux%u RGB3 field 1, got %ux%u %.4s field %u", width, height,
			  pix->width, pix->height, (char *)&pix->pixelformat, pix->field);
	if (pix->bytesperline != line_size || pix->sizeimage != frame_size)
		QUEUE_DIE(q, "lines of %u bytes and frames of %u, need %zu and %zu",
			  pix->bytesperline, pix->sizeimage, line_size, frame_size);
}

static void set_up_devices(void)
{
	struct v4l2_streamparm parm = {
		.type = capture.type,
		.parm.capture.timeperframe = { .numerator = 1, .denominator = 60 },
	};
	struct v4l2_control vflip = { .id = V4L2_CID_VFLIP, .value = flip };

	set_format(&capture);
	set_format(&input);
	set_format(&result);
	/* The frame rate is only for the speed of the test: it may fail. */
	ioctl(capture.fd, VIDIOC_S_PARM, &parm);
	QUEUE_IOCTL(&input, VIDIOC_S_CTRL, &vflip);
}

static void request_buffers(const struct queue *q, unsigned int count)
{
	struct v4l2_requestbuffers req = { .count = count, .type = q->type, .memory = q->memory };

	QUEUE_IOCTL(q, VIDIOC_REQBUFS, &req);
	if (req.count != count)
		QUEUE_DIE(q, "asked for %u buffers, got %u", count, req.count);
}

static int export_buffer(const struct queue *q, unsigned int index)
{
	struct v4l2_exportbuffer exp = { .type = q->type, .index = index };

	exp.flags = O_RDWR | O_CLOEXEC;
	QUEUE_IOCTL(q, VIDIOC_EXPBUF, &exp);
	return exp.fd;
}

static int heap_buffer(int heap_fd)
{
	size_t page = sysconf(_SC_PAGESIZE);
	struct dma_heap_allocation_data data = {
		.len = (frame_size + page - 1) / page * page,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};

	if (ioctl(heap_fd, DMA_HEAP_IOCTL_ALLOC, &data) < 0)
		die("%s: DMA_HEAP_IOCTL_ALLOC: %s", heap, strerror(errno));
	return data.fd;
}

static unsigned char *map_buffer(const char *path, int fd, off_t offset)
{
	unsigned char *map = mmap(NULL, frame_size, PROT_READ, MAP_SHARED, fd, offset);

	if (map == MAP_FAILED)
		die("%s: mmap of a buffer: %s", path, strerror(errno));
	return map;
}

static void create_buffers(void)
{
	struct queue *exporter = NULL;
	int heap_fd = -1;
	unsigned int i;

	capture.memory = V4L2_MEMORY_DMABUF;
	input.memory = V4L2_MEMORY_DMABUF;
	result.memory = V4L2_MEMORY_MMAP;
	if (!strcmp(export, "heap")) {
		heap_fd = open_device(heap);
	} else {
		exporter = !strcmp(export, "capture") ? &capture : &input;
		exporter->memory = V4L2_MEMORY_MMAP;
	}
	exporter_path = exporter ? exporter->path : heap;

	request_buffers(&capture, NUM_BUFS);
	request_buffers(&input, NUM_BUFS);
	request_buffers(&result, NUM_BUFS);
	for (i = 0; i < NUM_BUFS; i++) {
		struct v4l2_buffer b = { .type = result.type, .memory = result.memory, .index = i };

		shared_fd[i] = exporter ? export_buffer(exporter, i) : heap_buffer(heap_fd);
		shared_map[i] = map_buffer(exporter_path, shared_fd[i], 0);
		QUEUE_IOCTL(&result, VIDIOC_QUERYBUF, &b);
		result_map[i] = map_buffer(result.path, result.fd, b.m.offset);
	}
	if (heap_fd >= 0)
		close(heap_fd);
}

static void destroy_buffers(void)
{
	unsigned int i;

	for (i = 0; i < NUM_BUFS; i++) {
		munmap(result_map[i], frame_size);
		munmap(shared_map[i], frame_size);
		close(shared_fd[i]);
	}
	request_buffers(&capture, 0);
	request_buffers(&input, 0);
	request_buffers(&result, 0);
}

static void enqueue(const struct queue *q, unsigned int index)
{
	struct v4l2_buffer b = { .type = q->type, .memory = q->memory, .index = index };

	if (q->memory == V4L2_MEMORY_DMABUF) {
		b.m.fd = shared_fd[index];
		b.length = frame_size;
	}
	if (V4L2_TYPE_IS_OUTPUT(q->type)) {
		b.bytesused = frame_size;
		b.field = V4L2_FIELD_NONE;
	}
	QUEUE_IOCTL(q, VIDIOC_QBUF, &b);
}

/* Waits for a buffer of the queue: which one is the choice of the driver. */
static struct v4l2_buffer dequeue(const struct queue *q)
{
	struct v4l2_buffer b = { .type = q->type, .memory = q->memory };
	struct pollfd pfd = {
		.fd = q->fd,
		.events = V4L2_TYPE_IS_OUTPUT(q->type) ? POLLOUT : POLLIN,
	};
	int ret = poll(&pfd, 1, TIMEOUT_MS);

	if (ret <= 0)
		QUEUE_DIE(q, "poll: %s", ret ? strerror(errno) : "no buffer in time");
	if (!(pfd.revents & pfd.events))
		QUEUE_DIE(q, "poll: unexpected events %#x", pfd.revents);

	QUEUE_IOCTL(q, VIDIOC_DQBUF, &b);
	if (b.index >= NUM_BUFS)
		QUEUE_DIE(q, "buffer %u dequeued, which does not exist", b.index);
	if (b.flags & V4L2_BUF_FLAG_ERROR)
		QUEUE_DIE(q, "buffer %u has the error flag", b.index);
	if (b.bytesused != frame_size)
		QUEUE_DIE(q, "buffer %u has %u bytes, not %zu", b.index, b.bytesused, frame_size);
	return b;
}

static void sync_shared(unsigned int index, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags | DMA_BUF_SYNC_READ };

	if (ioctl(shared_fd[index], DMA_BUF_IOCTL_SYNC, &sync) < 0)
		die("%s: DMA_BUF_IOCTL_SYNC of dma-buf %u: %s",
		    exporter_path, index, strerror(errno));
}

static void compare(unsigned int frame, const unsigned char *in, const unsigned char *res)
{
	unsigned int y;
	size_t x;

	if (!in[0] && !memcmp(in, in + 1, frame_size - 1))
		die("%s: frame %u is all zero", capture.path, frame);

	for (y = 0; y < height; y++) {
		const unsigned char *want = in + (flip ? height - 1 - y : y) * line_size;
		const unsigned char *got = res + y * line_size;

		for (x = 0; x < line_size; x++)
			if (got[x] != want[x])
				die("%s: frame %u: byte %zu of line %u is %#04x, should be %#04x",
				    result.path, frame, x, y, got[x], want[x]);
	}
}

static void write_ppm(const char *what, const unsigned char *data)
{
	/* A file system may want the pages of what it writes, which some mappings have none of. */
	unsigned char *copy = malloc(frame_size);
	char *path;
	FILE *f;

	if (!copy || asprintf(&path, "%s-%s.ppm", out, what) < 0)
		die("%s", strerror(ENOMEM));
	memcpy(copy, data, frame_size);
	f = fopen(path, "wb");
	if (!f)
		die("%s: open: %s", path, strerror(errno));
	fprintf(f, "P6\n%u %u\n255\n", width, height);
	if (fwrite(copy, frame_size, 1, f) != 1 || fclose(f))
		die("%s: write: %s", path, strerror(errno));
	free(path);
	free(copy);
}

/* 64-bit FNV-1a */
static uint64_t checksum(const unsigned char *data)
{
	uint64_t sum = 0xcbf29ce484222325;
	size_t i;

	for (i = 0; i < frame_size; i++)
		sum = (sum ^ data[i]) * 0x100000001b3;
	return sum;
}

/* Adds a checksum to those seen, unless it is one of them; returns how many there are. */
static unsigned int add_distinct(uint64_t *sums, unsigned int num, uint64_t sum)
{
	unsigned int i;

	for (i = 0; i < num && sums[i] != sum; i++)
		;
	sums[i] = sum;
	return i < num ? num : num + 1;
}

static void print_bufinfo(void)
{
	FILE *f = fopen(BUFINFO, "r");
	char line[512];

	if (!f)
		die("%s: open: %s", BUFINFO, strerror(errno));
	printf("--- bufinfo ---\n");
	while (fgets(line, sizeof(line), f))
		fputs(line, stdout);
	if (ferror(f))
		die("%s: read: %s", BUFINFO, strerror(errno));
	printf("--- end of bufinfo ---\n");
	fclose(f);
}

/* Moves and checks all frames; returns how many of them were distinct. */
static unsigned int run_pipe(void)
{
	uint64_t *sums = calloc(frames, sizeof(*sums));
	unsigned int frame, distinct = 0;
	__u32 first = 0, last = 0;	/* sequence numbers */

	if (!sums)
		die("calloc: %s", strerror(errno));

	for (frame = 0; frame < frames; frame++) {
		struct v4l2_buffer in, res;
		const unsigned char *in_map, *res_map;

		if (bufinfo && frame == frames / 2)
			print_bufinfo();

		in = dequeue(&capture);
		/* Not "<=": vivid repeats a number if drawing takes most of a frame period. */
		if (frame && in.sequence < last)
			die("%s: sequence number %u after %u", capture.path, in.sequence, last);
		last = in.sequence;
		if (!frame)
			first = last;

		enqueue(&input, in.index);
		res = dequeue(&result);
		if (dequeue(&input).index != in.index)
			QUEUE_DIE(&input, "returned another buffer than %u", in.index);

		in_map = shared_map[in.index];
		res_map = result_map[res.index];
		sync_shared(in.index, DMA_BUF_SYNC_START);
		compare(frame, in_map, res_map);
		distinct = add_distinct(sums, distinct, checksum(in_map));
		if (out && !frame) {
			write_ppm("input", in_map);
			write_ppm("output", res_map);
		}
		sync_shared(in.index, DMA_BUF_SYNC_END);

		enqueue(&result, res.index);
		enqueue(&capture, in.index);
	}
	free(sums);

	if (frames >= 10 && last == first)
		die("%s: all %u frames have sequence number %u", capture.path, frames, last);
	if (frames >= 10 && distinct < 2)
		die("%s: all %u frames are the same, which proves little", capture.path, frames);
	return distinct;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void parse_options(int argc, char **argv)
{
	const char *frames_arg = "30", *size_arg = "640x360";
	const char **args[] = {
		&capture.path, &input.path, &export, &heap, &out, &frames_arg, &size_arg,
	};
	const struct option options[] = {	/* ends in the index in args, or the value */
		{ "capture", required_argument, NULL, 0 },
		{ "m2m", required_argument, NULL, 1 },
		{ "export", required_argument, NULL, 2 },
		{ "heap", required_argument, NULL, 3 },
		{ "out", required_argument, NULL, 4 },
		{ "frames", required_argument, NULL, 5 },
		{ "size", required_argument, NULL, 6 },
		{ "flip", no_argument, &flip, 1 },
		{ "bufinfo", no_argument, &bufinfo, 1 },
		{ }
	};
	char end;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == '?')
			usage();
		if (optarg)
			*args[c] = optarg;
	}
	if (optind != argc || !capture.path || !input.path || !export ||
	    (strcmp(export, "capture") && strcmp(export, "m2m") && strcmp(export, "heap")) ||
	    sscanf(frames_arg, "%6u%c", &frames, &end) != 1 ||
	    sscanf(size_arg, "%4ux%4u%c", &width, &height, &end) != 2)
		usage();
	/* scanf() reads -1 as a large number. */
	if (frames - 1 > 999998 || width - 1 > 9998 || height - 1 > 9998)
		usage();
	result.path = input.path;
	line_size = 3 * width;
	frame_size = line_size * height;
}

int main(int argc, char **argv)
{
	struct v4l2_capability capture_cap, m2m_cap;
	unsigned int i, distinct;
	double start, seconds;

	parse_options(argc, argv);
	open_queue(&capture, V4L2_CAP_VIDEO_CAPTURE, &capture_cap);
	open_queue(&input, V4L2_CAP_VIDEO_M2M, &m2m_cap);
	result.fd = input.fd;

	set_up_devices();
	create_buffers();
	for (i = 0; i < NUM_BUFS; i++) {
		enqueue(&result, i);
		enqueue(&capture, i);
	}
	QUEUE_IOCTL(&input, VIDIOC_STREAMON, &input.type);
	QUEUE_IOCTL(&result, VIDIOC_STREAMON, &result.type);
	QUEUE_IOCTL(&capture, VIDIOC_STREAMON, &capture.type);

	start = now();
	distinct = run_pipe();
	seconds = now() - start;

	QUEUE_IOCTL(&capture, VIDIOC_STREAMOFF, &capture.type);
	QUEUE_IOCTL(&input, VIDIOC_STREAMOFF, &input.type);
	QUEUE_IOCTL(&result, VIDIOC_STREAMOFF, &result.type);
	destroy_buffers();

	printf("dmabuf-pipe: %u frames from %s through %s, %s exports, ",
	       frames, capture_cap.card, m2m_cap.card, export);
	printf("all equal (%u distinct), %.1f fps\n", distinct, frames / seconds);
	return 0;
}
