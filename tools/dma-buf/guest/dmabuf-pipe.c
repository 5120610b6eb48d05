// SPDX-License-Identifier: GPL-2.0
/*
 * dmabuf-pipe - move frames from a V4L2 capture device (vivid) through a V4L2
 * mem2mem device (vim2m) in shared dma-bufs, and verify every one of them.
 *
 *   capture device --(4 shared dma-bufs)--> m2m OUTPUT ... m2m CAPTURE --> check
 *
 * The shared dma-bufs come from one of the devices (VIDIOC_EXPBUF), a dma-buf
 * heap or udmabuf, and whoever did not make them imports them. Buffer i of the
 * capture queue and buffer i of the m2m OUTPUT queue are the same memory.
 *
 * With --copy there is nothing shared: each device has buffers of its own, and
 * frames are copied from the one to the other, as it was done before dma-buf.
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
#include <sys/stat.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <linux/videodev2.h>

#define NUM_BUFS	4
#define TIMEOUT_MS	10000
#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define EXIT_USAGE	2
#define EXIT_SKIP	4	/* what kselftest takes for "skipped" */
#define CELLS		16	/* across a frame of rust_vivid, one for each bit of its number */

/* Of RGB: what a format keeps of each component, which is not all in 16 bits. */
static const struct format {
	const char *name;
	__u32 fourcc;
	unsigned int bytes;	/* of a pixel */
	unsigned char kept[3];
} formats[] = {
	{ "RGB24", V4L2_PIX_FMT_RGB24, 3, { 0xff, 0xff, 0xff } },
	{ "XRGB32", V4L2_PIX_FMT_XRGB32, 4, { 0xff, 0xff, 0xff } },
	{ "RGB565", V4L2_PIX_FMT_RGB565, 2, { 0xf8, 0xfc, 0xf8 } },
};

struct queue {
	const char *path;	/* of the device */
	const char *name;	/* of the queue, for messages */
	int fd;
	__u32 type;
	__u32 memory;
	const struct format *format;
};

#define QUEUE(what, what_type) { .name = what, .type = what_type, .format = formats }

static struct queue capture = QUEUE("capture", V4L2_BUF_TYPE_VIDEO_CAPTURE);
static struct queue input = QUEUE("m2m output", V4L2_BUF_TYPE_VIDEO_OUTPUT);
static struct queue result = QUEUE("m2m capture", V4L2_BUF_TYPE_VIDEO_CAPTURE);

/* The shared buffers, and those for the results, which only the m2m device and we see. */
static int shared_fd[NUM_BUFS];
static unsigned char *shared_map[NUM_BUFS];
static unsigned char *input_map[NUM_BUFS];	/* with --copy */
static unsigned char *result_map[NUM_BUFS];

static const char *export, *out, *heap = "/dev/dma_heap/system", *attached = "";
static const char *exporter_path;
static unsigned int frames, width, height, fps;
static int flip, bufinfo, counters, copy, cost, selftest;
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
		"                   --export capture|m2m|heap|udmabuf [--heap /dev/dma_heap/NAME]\n"
		"                   or: --copy\n"
		"                   [--frames N] [--fps N] [--flip] [--size WxH] [--out PREFIX]\n"
		"                   [--counters] [--bufinfo] [--attached DEVICE,...] [--cost]\n"
		"                   [--out-format RGB24|XRGB32|RGB565]\n"
		"       dmabuf-pipe --selftest\n"
		"\n"
		"--counters  the capture device is rust_vivid, which draws the number of a frame\n"
		"            into it: none may be lost, come again, or be torn\n"
		"--attached  in bufinfo, these devices are attached to each of the buffers\n"
		"--cost      print what the CPUs did for a frame, and do not look at each byte\n"
		"--out-format  what the m2m device makes of RGB24\n"
		"--selftest  --counters finds what is wrong in frames made here\n");
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

static size_t size_of(const struct queue *q)
{
	return (size_t)q->format->bytes * width * height;
}

static void set_format(const struct queue *q)
{
	struct v4l2_format f = { .type = q->type };
	struct v4l2_pix_format *pix = &f.fmt.pix;

	pix->width = width;
	pix->height = height;
	pix->pixelformat = q->format->fourcc;
	pix->field = V4L2_FIELD_NONE;
	QUEUE_IOCTL(q, VIDIOC_S_FMT, &f);
	if (pix->width != width || pix->height != height || pix->field != V4L2_FIELD_NONE ||
	    pix->pixelformat != q->format->fourcc)
		QUEUE_DIE(q, "asked for %ux%u %s field 1, got %ux%u %.4s field %u", width, height,
			  q->format->name, pix->width, pix->height, (char *)&pix->pixelformat,
			  pix->field);
	if (pix->bytesperline != q->format->bytes * width || pix->sizeimage != size_of(q))
		QUEUE_DIE(q, "lines of %u bytes and frames of %u, need %u and %zu",
			  pix->bytesperline, pix->sizeimage, q->format->bytes * width, size_of(q));
}

static void set_up_devices(void)
{
	struct v4l2_streamparm parm = {
		.type = capture.type,
		.parm.capture.timeperframe = { .numerator = 1, .denominator = fps },
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

static int udmabuf_buffer(void)
{
	size_t page = sysconf(_SC_PAGESIZE);
	struct udmabuf_create create = {
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = (frame_size + page - 1) / page * page,
	};
	struct dma_buf_sync sync[] = {
		{ .flags = DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW },
		{ .flags = DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW },
	};
	int dev = open_device("/dev/udmabuf"), mem, fd, i;

	mem = memfd_create("dmabuf-pipe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (mem < 0 || ftruncate(mem, create.size) < 0 || fcntl(mem, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
		die("memfd: %s", strerror(errno));
	create.memfd = mem;
	fd = ioctl(dev, UDMABUF_CREATE, &create);
	if (fd < 0)
		die("/dev/udmabuf: UDMABUF_CREATE: %s", strerror(errno));
	/* It is mapped once, for the first access, and keeps the direction of that. */
	for (i = 0; i < 2; i++)
		if (ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync[i]) < 0)
			die("/dev/udmabuf: DMA_BUF_IOCTL_SYNC: %s", strerror(errno));
	close(mem);
	close(dev);
	return fd;
}

static unsigned char *map_buffer(const char *path, int fd, off_t offset, int prot, size_t size)
{
	unsigned char *map = mmap(NULL, size, prot, MAP_SHARED, fd, offset);

	if (map == MAP_FAILED)
		die("%s: mmap of a buffer: %s", path, strerror(errno));
	return map;
}

/* A buffer of the queue's own. */
static unsigned char *map_own(const struct queue *q, unsigned int index, int prot)
{
	struct v4l2_buffer b = { .type = q->type, .memory = q->memory, .index = index };

	QUEUE_IOCTL(q, VIDIOC_QUERYBUF, &b);
	return map_buffer(q->path, q->fd, b.m.offset, prot, size_of(q));
}

static void create_buffers(void)
{
	struct queue *exporter = NULL;
	int heap_fd = -1;
	unsigned int i;

	capture.memory = copy ? V4L2_MEMORY_MMAP : V4L2_MEMORY_DMABUF;
	input.memory = capture.memory;
	result.memory = V4L2_MEMORY_MMAP;
	if (copy) {
		exporter_path = capture.path;
	} else if (!strcmp(export, "heap")) {
		exporter_path = heap;
		heap_fd = open_device(heap);
	} else if (!strcmp(export, "udmabuf")) {
		exporter_path = "/dev/udmabuf";
	} else {
		exporter = !strcmp(export, "capture") ? &capture : &input;
		exporter->memory = V4L2_MEMORY_MMAP;
		exporter_path = exporter->path;
	}

	request_buffers(&capture, NUM_BUFS);
	request_buffers(&input, NUM_BUFS);
	request_buffers(&result, NUM_BUFS);
	for (i = 0; i < NUM_BUFS; i++) {
		result_map[i] = map_own(&result, i, PROT_READ);
		if (copy) {
			shared_map[i] = map_own(&capture, i, PROT_READ);
			input_map[i] = map_own(&input, i, PROT_READ | PROT_WRITE);
			continue;
		}
		if (exporter)
			shared_fd[i] = export_buffer(exporter, i);
		else
			shared_fd[i] = heap_fd >= 0 ? heap_buffer(heap_fd) : udmabuf_buffer();
		shared_map[i] = map_buffer(exporter_path, shared_fd[i], 0, PROT_READ, frame_size);
	}
	if (heap_fd >= 0)
		close(heap_fd);
}

static void destroy_buffers(void)
{
	unsigned int i;

	for (i = 0; i < NUM_BUFS; i++) {
		munmap(result_map[i], size_of(&result));
		munmap(shared_map[i], frame_size);
		if (copy)
			munmap(input_map[i], frame_size);
		else
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
	if (b.bytesused != size_of(q))
		QUEUE_DIE(q, "buffer %u has %u bytes, not %zu", b.index, b.bytesused, size_of(q));
	return b;
}

static void sync_shared(unsigned int index, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags | DMA_BUF_SYNC_READ };

	if (copy)
		return;
	if (ioctl(shared_fd[index], DMA_BUF_IOCTL_SYNC, &sync) < 0)
		die("%s: DMA_BUF_IOCTL_SYNC of dma-buf %u: %s",
		    exporter_path, index, strerror(errno));
}

/* A result as RGB24: with zeroes for what its format does not keep. */
static const unsigned char *as_rgb24(const unsigned char *res)
{
	static unsigned char *rgb;
	size_t i, pixels = (size_t)width * height;

	if (result.format->bytes == 3)
		return res;
	if (!rgb)
		rgb = malloc(frame_size);
	if (!rgb)
		die("%s", strerror(ENOMEM));
	for (i = 0; i < pixels; i++) {
		if (result.format->bytes == 4) {
			memcpy(rgb + 3 * i, res + 4 * i + 1, 3);
		} else {
			unsigned int pixel = res[2 * i] | res[2 * i + 1] << 8;

			rgb[3 * i] = pixel >> 11 << 3;
			rgb[3 * i + 1] = pixel >> 3 & 0xfc;
			rgb[3 * i + 2] = pixel << 3;
		}
	}
	return rgb;
}

static void compare(unsigned int frame, const unsigned char *in, const unsigned char *res)
{
	const unsigned char *kept = result.format->kept;
	unsigned int y;
	size_t x;

	if (!in[0] && !memcmp(in, in + 1, frame_size - 1))
		die("%s: frame %u is all zero", capture.path, frame);

	for (y = 0; y < height; y++) {
		const unsigned char *want = in + (flip ? height - 1 - y : y) * line_size;
		const unsigned char *got = res + y * line_size;

		for (x = 0; x < line_size; x++)
			if (got[x] != (want[x] & kept[x % 3]))
				die("%s: frame %u: byte %zu of line %u is %#04x, should be %#04x",
				    result.path, frame, x, y, got[x], want[x] & kept[x % 3]);
	}
}

/* The number that a line shows, or -1 if it shows something else. */
static int number_in(const unsigned char *line)
{
	unsigned int cell = width / CELLS, number = 0, i, x;

	for (x = 0; x < width; x++) {
		const unsigned char *pixel = line + 3 * x;
		int white = pixel[0] >= 128;

		i = x / cell;
		if ((pixel[1] >= 128) != white || (pixel[2] >= 128) != white)
			return -1;
		if (i >= CELLS ? white : x % cell && white != (int)(number >> i & 1))
			return -1;
		if (i < CELLS && white)
			number |= 1 << i;
	}
	return number;
}

/* In how many lines at the top, and as many at the bottom, a frame of rust_vivid shows its number. */
static unsigned int band(void)
{
	return height / CELLS ? height / CELLS : 1;
}

/*
 * What is between the bands is the same in all lines, but not in two frames that follow each other.
 * Returns the first line that is not as it should be, or -1.
 */
static int wrong_line(const unsigned char *frame, __u32 sequence)
{
	unsigned int y;

	for (y = 0; y < height; y++) {
		const unsigned char *line = frame + y * line_size;

		if (y < band() || y >= height - band()) {
			if (number_in(line) != (int)(sequence & 0xffff))
				return y;
		} else if (memcmp(line, frame + band() * line_size, line_size)) {
			return y;
		}
	}
	return -1;
}

static void check_number(const char *path, const unsigned char *frame, __u32 sequence)
{
	int y = wrong_line(frame, sequence);

	if (y >= 0)
		die("%s: frame %u is torn, or another: line %d shows %d", path, sequence, y,
		    number_in(frame + y * line_size));
}

/* The least that tells frames apart, where more would be most of what the CPUs do. */
static void check_ends(const char *path, const unsigned char *frame, __u32 sequence)
{
	int first = number_in(frame), last = number_in(frame + frame_size - line_size);

	if (first != (int)(sequence & 0xffff) || last != first)
		die("%s: frame %u is torn, or another: it begins with %d and ends with %d", path,
		    sequence, first, last);
}

/* What rust_vivid draws, as far as it matters here. */
static void draw(unsigned char *frame, __u32 sequence)
{
	unsigned int cell = width / CELLS, x, y;

	for (y = 0; y < height; y++) {
		unsigned char *line = frame + y * line_size;

		for (x = 0; x < width; x++) {
			unsigned int i = x / cell;

			if (y >= band() && y < height - band())
				memset(line + 3 * x, (x + sequence) * 8, 3);
			else
				memset(line + 3 * x, i < CELLS && sequence >> i & 1 ? 0xff : 0, 3);
		}
	}
}

static void must_find(const char *what, const unsigned char *frame, __u32 sequence, int line)
{
	int found = wrong_line(frame, sequence);

	if (found != line)
		die("selftest: %ux%u, frame %u, %s: line %d, should be %d", width, height, sequence,
		    what, found, line);
}

/* Each way that a frame may be wrong is found, in the line where it is. */
static void test_counters(void)
{
	static const unsigned int sizes[][2] = {
		{ 16, 16 }, { 18, 16 }, { 640, 360 }, { 646, 362 }, { 1280, 720 },
	};
	static const __u32 numbers[] = { 0, 1, 2, 0x7fff, 0x8000, 0xaaaa, 0xffff, 0x10000, 0x12345 };
	unsigned int i, j;

	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		unsigned char *frame, *next;

		width = sizes[i][0];
		height = sizes[i][1];
		line_size = 3 * width;
		frame_size = line_size * height;
		frame = malloc(frame_size);
		next = malloc(frame_size);
		if (!frame || !next)
			die("%s", strerror(ENOMEM));
		for (j = 0; j < sizeof(numbers) / sizeof(*numbers); j++) {
			__u32 n = numbers[j];
			unsigned char *at;

			draw(next, n + 1);
			draw(frame, n);
			must_find("nothing wrong", frame, n, -1);
			must_find("the one before was lost", next, n, 0);
			must_find("it came again", frame, n + 1, 0);

			/* The next frame has overwritten the end, the middle or a line. */
			memcpy(frame + height / 2 * line_size, next + height / 2 * line_size,
			       frame_size - height / 2 * line_size);
			must_find("torn in the middle", frame, n, height / 2);
			draw(frame, n);
			memcpy(frame + (height - 1) * line_size, next + (height - 1) * line_size,
			       line_size);
			must_find("torn before the last line", frame, n, height - 1);
			draw(frame, n);
			memcpy(frame + (band() + 1) * line_size, next + (band() + 1) * line_size,
			       line_size);
			must_find("another line in it", frame, n, band() + 1);

			/* A pixel of the last line: in a cell, of a colour, or right of all cells. */
			draw(frame, n);
			at = frame + frame_size - line_size + 3 * (width / CELLS - 1);
			memset(at, ~*at, 3);
			must_find("a pixel of a cell", frame, n, height - 1);
			draw(frame, n);
			at[2] = ~at[2];
			must_find("a colour", frame, n, height - 1);
			if (width % CELLS) {
				draw(frame, n);
				memset(frame + frame_size - 3, 0xff, 3);
				must_find("a pixel at the right", frame, n, height - 1);
			}
		}
		free(frame);
		free(next);
	}
	printf("dmabuf-pipe: --counters finds frames that are lost, repeated or torn\n");
}

static unsigned char *keep(const unsigned char *data)
{
	unsigned char *kept = malloc(frame_size);

	if (!kept)
		die("%s", strerror(ENOMEM));
	return memcpy(kept, data, frame_size);
}

static void write_ppm(const char *what, const unsigned char *data)
{
	char *path;
	FILE *f;

	if (asprintf(&path, "%s-%s.ppm", out, what) < 0)
		die("%s", strerror(ENOMEM));
	f = fopen(path, "wb");
	if (!f)
		die("%s: open: %s", path, strerror(errno));
	fprintf(f, "P6\n%u %u\n255\n", width, height);
	if (fwrite(data, frame_size, 1, f) != 1 || fclose(f))
		die("%s: write: %s", path, strerror(errno));
	free(path);
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

/* Whether a name is in a list with commas. */
static int is_in(const char *list, const char *name)
{
	size_t len = strlen(name);
	const char *at;

	for (at = list; (at = strstr(at, name)); at += len)
		if ((at == list || at[-1] == ',') && (!at[len] || at[len] == ','))
			return 1;
	return 0;
}

/* Which of the shared buffers has an inode number, or -1. */
static int shared_with(unsigned long long inode)
{
	struct stat st;
	int i;

	for (i = 0; i < NUM_BUFS; i++)
		if (!fstat(shared_fd[i], &st) && st.st_ino == inode)
			return i;
	return -1;
}

/* Prints bufinfo if wanted, and checks who is attached to each of the shared buffers, once. */
static void look_at_bufinfo(void)
{
	static char devices[NUM_BUFS][512];
	char line[512], name[128], *names = strdup(attached), *at;
	FILE *f = fopen(BUFINFO, "r");
	unsigned long long inode;
	int i = -1;

	if (!f || !names)
		die("%s: open: %s", BUFINFO, strerror(errno));
	if (bufinfo)
		printf("--- bufinfo ---\n");
	while (fgets(line, sizeof(line), f)) {
		if (bufinfo)
			fputs(line, stdout);
		/* The line of a buffer, and then one for each device that is attached to it. */
		if (line[0] != '\t' && sscanf(line, "%*s %*s %*s %*s %*s %llu", &inode) == 1)
			i = shared_with(inode);
		if (i < 0 || line[0] != '\t' || sscanf(line, "%127s", name) != 1)
			continue;
		if (is_in(attached, name) && is_in(devices[i], name))
			die("%s: %s is attached twice to buffer %d", BUFINFO, name, i);
		if (strlen(devices[i]) + strlen(name) + 2 <= sizeof(devices[i]))
			strcat(strcat(devices[i], name), ",");
	}
	if (ferror(f))
		die("%s: read: %s", BUFINFO, strerror(errno));
	if (bufinfo)
		printf("--- end of bufinfo ---\n");
	fclose(f);
	for (at = strtok(names, ","); at; at = strtok(NULL, ","))
		for (i = 0; i < NUM_BUFS; i++)
			if (!is_in(devices[i], at))
				die("%s: %s is not attached to buffer %d", BUFINFO, at, i);
	free(names);
}

/* What run_pipe() found. */
static struct {
	unsigned int distinct;
	__u32 first, last;	/* sequence numbers */
	unsigned int late;	/* frames that had no buffer to go to */
	unsigned char *input, *output;	/* the first frame, to be written when there is time */
} found;

/* Moves and checks all frames. */
static void run_pipe(void)
{
	uint64_t *sums = calloc(frames, sizeof(*sums));
	unsigned int frame;

	if (!sums)
		die("calloc: %s", strerror(errno));

	for (frame = 0; frame < frames; frame++) {
		struct v4l2_buffer in, res;
		const unsigned char *in_map, *res_map;

		if ((bufinfo || *attached) && frame == frames / 2)
			look_at_bufinfo();

		in = dequeue(&capture);
		/* Not "<=": vivid repeats a number if drawing takes most of a frame period. */
		if (frame && (in.sequence < found.last || (counters && in.sequence == found.last)))
			die("%s: sequence number %u after %u", capture.path, in.sequence,
			    found.last);
		if (frame && in.sequence > found.last)
			found.late += in.sequence - found.last - 1;
		found.last = in.sequence;
		if (!frame)
			found.first = found.last;

		in_map = shared_map[in.index];
		if (copy)
			memcpy(input_map[in.index], in_map, frame_size);
		enqueue(&input, in.index);
		res = dequeue(&result);
		if (dequeue(&input).index != in.index)
			QUEUE_DIE(&input, "returned another buffer than %u", in.index);

		res_map = as_rgb24(result_map[res.index]);
		sync_shared(in.index, DMA_BUF_SYNC_START);
		if (!cost) {
			compare(frame, in_map, res_map);
			found.distinct = add_distinct(sums, found.distinct, checksum(in_map));
			if (counters)
				check_number(result.path, res_map, in.sequence);
		} else if (counters) {
			check_ends(result.path, res_map, in.sequence);
		}
		if (out && !frame) {
			found.input = keep(in_map);
			found.output = keep(res_map);
		}
		sync_shared(in.index, DMA_BUF_SYNC_END);

		enqueue(&result, res.index);
		enqueue(&capture, in.index);
	}
	free(sums);

	if (frames >= 10 && found.last == found.first)
		die("%s: all %u frames have sequence number %u", capture.path, frames, found.last);
	if (!cost && frames >= 10 && found.distinct < 2)
		die("%s: all %u frames are the same, which proves little", capture.path, frames);
}

/* The time that all CPUs were not idle, in ms. */
static double busy(void)
{
	unsigned long long t[8];
	FILE *f = fopen("/proc/stat", "r");

	if (!f || fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2], &t[3],
			 &t[4], &t[5], &t[6], &t[7]) != 8)
		die("/proc/stat: %s", strerror(errno));
	fclose(f);
	return (t[0] + t[1] + t[2] + t[5] + t[6]) * 1e3 / sysconf(_SC_CLK_TCK);
}

static double now(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void parse_options(int argc, char **argv)
{
	const char *frames_arg = "30", *size_arg = "640x360", *fps_arg = "60";
	const char *format_arg = formats[0].name;
	const char **args[] = {
		&capture.path, &input.path, &export, &heap, &out, &frames_arg, &size_arg, &fps_arg,
		&attached, &format_arg,
	};
	const struct option options[] = {	/* ends in the index in args, or the value */
		{ "capture", required_argument, NULL, 0 },
		{ "m2m", required_argument, NULL, 1 },
		{ "export", required_argument, NULL, 2 },
		{ "heap", required_argument, NULL, 3 },
		{ "out", required_argument, NULL, 4 },
		{ "frames", required_argument, NULL, 5 },
		{ "size", required_argument, NULL, 6 },
		{ "fps", required_argument, NULL, 7 },
		{ "attached", required_argument, NULL, 8 },
		{ "out-format", required_argument, NULL, 9 },
		{ "flip", no_argument, &flip, 1 },
		{ "bufinfo", no_argument, &bufinfo, 1 },
		{ "counters", no_argument, &counters, 1 },
		{ "copy", no_argument, &copy, 1 },
		{ "cost", no_argument, &cost, 1 },
		{ "selftest", no_argument, &selftest, 1 },
		{ }
	};
	unsigned int i;
	char end;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == '?')
			usage();
		if (optarg)
			*args[c] = optarg;
	}
	if (selftest)
		return;
	for (i = 0; i < sizeof(formats) / sizeof(*formats); i++)
		if (!strcmp(format_arg, formats[i].name))
			break;
	if (i == sizeof(formats) / sizeof(*formats) || (i && cost))
		usage();
	result.format = &formats[i];
	if (optind != argc || !capture.path || !input.path || !export == !copy ||
	    (export && !is_in("capture,m2m,heap,udmabuf", export)) ||
	    sscanf(frames_arg, "%6u%c", &frames, &end) != 1 ||
	    sscanf(fps_arg, "%3u%c", &fps, &end) != 1 ||
	    sscanf(size_arg, "%4ux%4u%c", &width, &height, &end) != 2)
		usage();
	/* scanf() reads -1 as a large number. */
	if (frames - 1 > 999998 || width - 1 > 9998 || height - 1 > 9998 || fps - 1 > 998 ||
	    (counters && width < CELLS) || (copy && *attached))
		usage();
	result.path = input.path;
	line_size = 3 * width;
	frame_size = line_size * height;
}

int main(int argc, char **argv)
{
	struct v4l2_capability capture_cap, m2m_cap;
	double start, seconds, all, own;
	unsigned int i;

	parse_options(argc, argv);
	if (selftest) {
		test_counters();
		return 0;
	}
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
	all = busy();
	own = now(CLOCK_PROCESS_CPUTIME_ID);
	start = now(CLOCK_MONOTONIC);
	QUEUE_IOCTL(&capture, VIDIOC_STREAMON, &capture.type);

	run_pipe();
	seconds = now(CLOCK_MONOTONIC) - start;
	own = now(CLOCK_PROCESS_CPUTIME_ID) - own;
	all = busy() - all;

	QUEUE_IOCTL(&capture, VIDIOC_STREAMOFF, &capture.type);
	QUEUE_IOCTL(&input, VIDIOC_STREAMOFF, &input.type);
	QUEUE_IOCTL(&result, VIDIOC_STREAMOFF, &result.type);
	destroy_buffers();
	if (out) {
		write_ppm("input", found.input);
		write_ppm("output", found.output);
	}

	printf("dmabuf-pipe: %u frames from %s through %s, ", frames, capture_cap.card, m2m_cap.card);
	if (copy)
		printf("copied");
	else
		printf("%s exports", export);
	if (result.format != formats)
		printf(", to %s", result.format->name);
	if (!cost)
		printf(", all equal (%u distinct)", found.distinct);
	if (counters)
		printf(", numbers %u to %u, none lost, repeated or torn%s", found.first, found.last,
		       cost ? " by their first and last lines" : "");
	if (counters && found.late)
		printf(" (%u came when no buffer was free)", found.late);
	printf(", %.1f fps", frames / seconds);
	if (cost)
		printf(", %.1f ms of CPU per frame, %.2f of them in this program", all / frames,
		       own * 1e3 / frames);
	printf("\n");
	return 0;
}
