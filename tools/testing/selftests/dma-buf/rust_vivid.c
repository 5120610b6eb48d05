// SPDX-License-Identifier: GPL-2.0
/*
 * The V4L2 capture driver of samples/rust/rust_vivid.rs: its frames, and what becomes of the
 * buffers that it exports and imports.
 */

#define _GNU_SOURCE
#include "rust_v4l2.h"

/* A frame as rust_vivid would draw it, to test the function above. */
static void draw(unsigned char *frame, const struct v4l2_pix_format *pix, unsigned int counter,
		 unsigned int shift)
{
	unsigned int band = band_height(pix), cell = pix->width / 16, x, y;
	__u32 rgb;

	/* All colours grey. */
	memset(frame, 128, pix->sizeimage);
	for (y = 0; y < pix->height; y++) {
		for (x = 0; x < pix->width; x++) {
			rgb = (x + shift) % pix->width * 255 / pix->width * 0x10101;
			if (y < band || y >= pix->height - band)
				rgb = x < 16 * cell && counter >> x / cell & 1 ? 0xffffff : 0;
			put_rgb(frame, pix, x, y, rgb);
		}
	}
}

static const __u32 formats[] = {
	V4L2_PIX_FMT_RGB24,
	V4L2_PIX_FMT_XRGB32,
	V4L2_PIX_FMT_RGB565,
	V4L2_PIX_FMT_YUYV,
	V4L2_PIX_FMT_NV12,
	V4L2_PIX_FMT_GREY,
};

static const struct {
	__u32 width;
	__u32 height;
} sizes[] = {
	{ WIDTH, HEIGHT },
	{ 16, 16 },
	{ 66, 50 },
	{ 320, 240 },
};

/* What the tests below rely on: that a frame is torn is noticed, wherever it is. */
TEST(checker)
{
	struct v4l2_pix_format pix = { 0 };
	unsigned char *frame, *other;
	unsigned int f, s, y, line;

	frame = malloc(320 * 240 * 4);
	other = malloc(320 * 240 * 4);
	ASSERT_TRUE(frame && other);
	for (f = 0; f < ARRAY_SIZE(formats); f++) {
		for (s = 0; s < ARRAY_SIZE(sizes); s++) {
			pix.pixelformat = formats[f];
			pix.width = sizes[s].width;
			pix.height = sizes[s].height;
			line = pix.width * bytes_per_pixel(formats[f]);
			pix.bytesperline = line;
			pix.sizeimage = line * pix.height;
			if (formats[f] == V4L2_PIX_FMT_NV12)
				pix.sizeimage += pix.sizeimage / 2;

			draw(frame, &pix, 0xa5c3, 0);
			ASSERT_EQ(0xa5c3, counter_of(frame, &pix));
			draw(other, &pix, 0xa5c2, 5);
			ASSERT_EQ(0xa5c2, counter_of(other, &pix));
			/* The beginning of one frame and the end of another. */
			for (y = 1; y < pix.height; y += 1 + pix.height / 64 * 7) {
				draw(frame, &pix, 0xa5c3, 0);
				memcpy(frame + y * line, other + y * line,
				       pix.sizeimage - y * line);
				ASSERT_EQ(TORN, counter_of(frame, &pix));
			}
			/* One byte in the middle, and the last, which is of the colours of NV12. */
			draw(frame, &pix, 0xa5c3, 0);
			frame[pix.height / 2 * line + line / 2] ^= 64;
			ASSERT_EQ(TORN, counter_of(frame, &pix));
			if (formats[f] == V4L2_PIX_FMT_NV12 && pix.height == 240) {
				draw(frame, &pix, 0xa5c3, 0);
				frame[pix.sizeimage - 1] ^= 64;
				ASSERT_EQ(TORN, counter_of(frame, &pix));
				draw(frame, &pix, 0xa5c3, 0);
				frame[pix.height * line + pix.height / 4 * line] ^= 64;
				ASSERT_EQ(TORN, counter_of(frame, &pix));
			}
			/* All rows equal, but no counter. */
			memset(frame, 128, pix.sizeimage);
			ASSERT_EQ(BAD, counter_of(frame, &pix));
			/* A counter, and no picture. */
			memset(frame, 0, pix.sizeimage);
			ASSERT_EQ(BAD, counter_of(frame, &pix));
		}
	}
	free(frame);
	free(other);
}

/*
 * Capture
 */

FIXTURE(capture) {
	struct queue q;
	int before;
	bool leaks;
};

FIXTURE_SETUP(capture)
{
	const char *name = capture_name();

	self->before = num_buffers();
	self->q.type = CAPTURE;
	self->q.fd = open_node(name, O_NONBLOCK);
	if (self->q.fd < 0)
		SKIP(return, "%s: %s (modprobe %s)", name, strerror(-self->q.fd), name);
	ASSERT_EQ(0, set_format(&self->q, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
	ASSERT_EQ(0, set_interval(self->q.fd, 1, 60));
	if (is_rust(name)) {
		ASSERT_EQ(WIDTH, (int)self->q.pix.width);
		ASSERT_EQ(HEIGHT, (int)self->q.pix.height);
		ASSERT_EQ(0, set_ctrl(self->q.fd, V4L2_CID_TEST_PATTERN, 0));
		ASSERT_EQ(0, set_ctrl(self->q.fd, V4L2_CID_HFLIP, 0));
		ASSERT_EQ(0, set_ctrl(self->q.fd, V4L2_CID_VFLIP, 0));
	}
}

FIXTURE_TEARDOWN(capture)
{
	release(&self->q);
	close(self->q.fd);
	/* All tests are tests of leaks, too; but one that fails does not clean up. */
	if (!_metadata->exit_code && !self->leaks)
		EXPECT_EQ(self->before, num_buffers_is(self->before));
}

TEST_F(capture, formats)
{
	struct v4l2_fmtdesc desc = { .type = CAPTURE };
	unsigned int i, found = 0;

	if (!is_rust(capture_name()))
		SKIP(return, "not a Rust sample: it has other formats");
	for (; !do_ioctl(self->q.fd, VIDIOC_ENUM_FMT, &desc); desc.index++)
		for (i = 0; i < ARRAY_SIZE(formats); i++)
			if (desc.pixelformat == formats[i])
				found |= 1 << i;
	EXPECT_EQ(ARRAY_SIZE(formats), desc.index);
	EXPECT_EQ((1u << ARRAY_SIZE(formats)) - 1, found);
}

TEST_F(capture, frame_sizes)
{
	if (!is_rust(capture_name()))
		SKIP(return, "not a Rust sample: it has other sizes");
	ASSERT_EQ(0, set_format(&self->q, V4L2_PIX_FMT_YUYV, 1, 1));
	EXPECT_EQ(16u, self->q.pix.width);
	EXPECT_EQ(16u, self->q.pix.height);
	ASSERT_EQ(0, set_format(&self->q, V4L2_PIX_FMT_NV12, 1000000, 1000000));
	EXPECT_EQ(1920u, self->q.pix.width);
	EXPECT_EQ(1080u, self->q.pix.height);
	EXPECT_EQ(1920u * 1080 * 3 / 2, self->q.pix.sizeimage);
	ASSERT_EQ(0, set_format(&self->q, V4L2_PIX_FMT_XRGB32, 101, 33));
	EXPECT_EQ(0u, self->q.pix.width % 2);
	EXPECT_EQ(0u, self->q.pix.height % 2);
	EXPECT_EQ(self->q.pix.width * 4, self->q.pix.bytesperline);
	EXPECT_EQ(self->q.pix.bytesperline * self->q.pix.height, self->q.pix.sizeimage);
}

/* Numbers and times rise, and the times are those of the clock. */
TEST_F(capture, sequence_and_timestamps)
{
	struct queue *q = &self->q;
	long long began = now(), last = 0;
	struct v4l2_buffer buf;
	__u32 sequence = 0;
	int i, index;

	start_capture(_metadata, q, NUM_BUFS);
	for (i = 0; i < 20; i++) {
		index = dequeue(q, &buf);
		ASSERT_GE(index, 0);
		EXPECT_EQ((__u32)V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC,
			  buf.flags & V4L2_BUF_FLAG_TIMESTAMP_MASK);
		EXPECT_EQ((__u32)V4L2_FIELD_NONE, buf.field);
		/* Microseconds are rounded down. */
		EXPECT_LE(began - 1000, timestamp(&buf));
		/* vivid says when the next frame begins. */
		if (is_rust(capture_name()))
			EXPECT_LE(timestamp(&buf), now());
		if (i) {
			EXPECT_LT(last, timestamp(&buf));
			EXPECT_LT(sequence, buf.sequence);
		}
		last = timestamp(&buf);
		sequence = buf.sequence;
		ASSERT_EQ(0, enqueue(q, index));
	}

	/* It counts from the start again. */
	ASSERT_EQ(0, stream(q, false));
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
	ASSERT_LE(0, dequeue(q, &buf));
	EXPECT_GT(sequence, buf.sequence);
}

/* Whole frames, whatever the format, with numbers and a picture that moves. */
TEST_F(capture, frames)
{
	unsigned char row[320 * 4];
	struct queue *q = &self->q;
	unsigned int f, s, i, line, moved;
	const unsigned char *middle;
	struct v4l2_buffer buf;
	int index;

	if (!is_rust(capture_name()))
		SKIP(return, "not a Rust sample: it has other frames");
	for (f = 0; f < ARRAY_SIZE(formats); f++) {
		for (s = 0; s < ARRAY_SIZE(sizes); s++) {
			ASSERT_EQ(0, set_format(q, formats[f], sizes[s].width, sizes[s].height));
			ASSERT_EQ(sizes[s].width, q->pix.width);
			ASSERT_EQ(sizes[s].height, q->pix.height);
			line = q->pix.width * bytes_per_pixel(formats[f]);
			start_capture(_metadata, q, NUM_BUFS);
			moved = 0;
			for (i = 0; i < 6; i++) {
				index = dequeue(q, &buf);
				ASSERT_GE(index, 0);
				ASSERT_EQ((int)(buf.sequence & 0xffff),
					  counter_of(q->planes[index].map, &q->pix)) {
					TH_LOG("%.4s %ux%u", (char *)&formats[f], q->pix.width,
					       q->pix.height);
				}
				middle = pixel_at(q->planes[index].map, &q->pix, 0,
						  q->pix.height / 2);
				moved += i && memcmp(row, middle, line);
				memcpy(row, middle, line);
				/* What is not written anew is noticed. */
				memset(q->planes[index].map, 0x55, q->planes[index].size);
				ASSERT_EQ(0, enqueue(q, index));
			}
			EXPECT_LT(0u, moved);
			release(q);
		}
	}
}

TEST_F(capture, large_frames)
{
	struct queue *q = &self->q;

	if (!is_rust(capture_name()))
		SKIP(return, "not a Rust sample: it has other frames");
	ASSERT_EQ(0, set_format(q, V4L2_PIX_FMT_XRGB32, 1920, 1080));
	start_capture(_metadata, q, 2);
	expect_frames(_metadata, q, 3);
}

/* The time between two frames, in ns, divided by how many frames later the second is. */
static long long measure(struct __test_metadata *_metadata, struct queue *q, int count)
{
	struct v4l2_buffer first, buf;
	int i, index;

	start_capture(_metadata, q, NUM_BUFS);
	for (i = 0; i <= count; i++) {
		index = dequeue(q, &buf);
		ASSERT_GE(index, 0);
		if (!i)
			first = buf;
		ASSERT_EQ(0, enqueue(q, index));
	}
	release(q);
	ASSERT_LT(first.sequence, buf.sequence);

	return (timestamp(&buf) - timestamp(&first)) / (buf.sequence - first.sequence);
}

TEST_F(capture, frame_rate)
{
	long long ns;

	ASSERT_EQ(0, set_interval(self->q.fd, 1, 60));
	ns = measure(_metadata, &self->q, 30);
	EXPECT_LT(NSEC / 60 * 7 / 10, ns);
	/* The machine may be slow. */
	EXPECT_GT(NSEC / 60 * 2, ns);
	TH_LOG("60 fps: %lld us", ns / 1000);

	ASSERT_EQ(0, set_interval(self->q.fd, 1, 1));
	ns = measure(_metadata, &self->q, 2);
	EXPECT_LT(NSEC * 8 / 10, ns);
	EXPECT_GT(NSEC * 13 / 10, ns);
	TH_LOG("1 fps: %lld us", ns / 1000);
}

TEST_F(capture, frame_rate_limits)
{
	struct v4l2_streamparm parm = { .type = CAPTURE };

	if (!is_rust(capture_name()))
		SKIP(return, "not a Rust sample: it has other frame rates");
	EXPECT_EQ(-ENOENT, set_interval(self->q.fd, 1, 1000));
	EXPECT_EQ(0, do_ioctl(self->q.fd, VIDIOC_G_PARM, &parm));
	EXPECT_EQ(60u, parm.parm.capture.timeperframe.denominator /
		  (parm.parm.capture.timeperframe.numerator ?: 1));
	EXPECT_EQ(-ENOENT, set_interval(self->q.fd, 100, 1));
	EXPECT_EQ(0, do_ioctl(self->q.fd, VIDIOC_G_PARM, &parm));
	EXPECT_EQ(parm.parm.capture.timeperframe.denominator,
		  parm.parm.capture.timeperframe.numerator);
	/* The default is asked for. */
	EXPECT_EQ(-ENOENT, set_interval(self->q.fd, 0, 1));
	EXPECT_EQ(0, do_ioctl(self->q.fd, VIDIOC_G_PARM, &parm));
	EXPECT_NE(0u, parm.parm.capture.timeperframe.numerator);
	EXPECT_NE(0u, parm.parm.capture.timeperframe.denominator);
}

/* The next frame that was begun after now. */
static int next_frame(struct __test_metadata *_metadata, struct queue *q)
{
	struct v4l2_buffer buf;
	int i, index = -1;

	/* What was done, and what is being drawn. */
	for (i = 0; i <= NUM_BUFS + 1; i++) {
		if (index >= 0)
			ASSERT_EQ(0, enqueue(q, index));
		index = dequeue(q, &buf);
		ASSERT_GE(index, 0);
	}

	return index;
}

static long long sum_of_middle(const unsigned char *frame, const struct v4l2_pix_format *pix)
{
	long long sum = 0;
	unsigned int x, y;

	for (y = band_height(pix); y < pix->height - band_height(pix); y++)
		for (x = 0; x < pix->width; x++)
			sum += brightness(frame, pix, x, y);

	return sum;
}

TEST_F(capture, brightness)
{
	struct v4l2_queryctrl query = { .id = V4L2_CID_BRIGHTNESS };
	struct queue *q = &self->q;
	long long sums[3];
	__s32 values[3];
	int i, index;

	ASSERT_EQ(0, do_ioctl(q->fd, VIDIOC_QUERYCTRL, &query));
	values[0] = query.minimum;
	values[1] = query.default_value;
	values[2] = query.maximum;
	start_capture(_metadata, q, NUM_BUFS);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, set_ctrl(q->fd, V4L2_CID_BRIGHTNESS, values[i]));
		index = next_frame(_metadata, q);
		sums[i] = sum_of_middle(q->planes[index].map, &q->pix);
		ASSERT_EQ(0, enqueue(q, index));
	}
	EXPECT_EQ(0, set_ctrl(q->fd, V4L2_CID_BRIGHTNESS, query.default_value));
	EXPECT_LT(sums[0], sums[1]);
	EXPECT_LT(sums[1], sums[2]);
}

/* The brightness of columns or rows of the picture, without the counter. */
static unsigned int profile(const unsigned char *frame, const struct v4l2_pix_format *pix,
			    bool rows, int *out)
{
	unsigned int band = band_height(pix), height = pix->height - 2 * band, i, j;
	unsigned int len = rows ? height : pix->width, across = rows ? pix->width : height;

	for (i = 0; i < len; i++) {
		out[i] = 0;
		for (j = 0; j < across; j++)
			out[i] += rows ? brightness(frame, pix, j, band + i) :
					 brightness(frame, pix, i, band + j);
		out[i] /= across;
	}

	return len;
}

/* In how many places two profiles differ, the second forwards or backwards. */
static unsigned int differences(const int *a, const int *b, unsigned int len, bool backwards)
{
	unsigned int i, count = 0;

	for (i = 0; i < len; i++)
		count += abs(a[i] - b[backwards ? len - 1 - i : i]) > 8;

	return count;
}

/* Something moves in the picture, so what is allowed to differ is a quarter. */
TEST_F(capture, flips)
{
	static const __u32 ids[] = { V4L2_CID_HFLIP, V4L2_CID_VFLIP };
	struct v4l2_queryctrl query = { .id = V4L2_CID_TEST_PATTERN };
	int index, pattern, before[WIDTH], after[WIDTH];
	unsigned int i, len, seen[2] = { 0 };
	struct queue *q = &self->q;

	if (!is_rust(capture_name()))
		SKIP(return, "not a Rust sample: it has controls of its own for this");
	ASSERT_EQ(0, do_ioctl(q->fd, VIDIOC_QUERYCTRL, &query));
	start_capture(_metadata, q, NUM_BUFS);
	for (pattern = query.minimum; pattern <= query.maximum; pattern++) {
		ASSERT_EQ(0, set_ctrl(q->fd, V4L2_CID_TEST_PATTERN, pattern));
		for (i = 0; i < 2; i++) {
			index = next_frame(_metadata, q);
			len = profile(q->planes[index].map, &q->pix, i, before);
			ASSERT_EQ(0, enqueue(q, index));
			ASSERT_EQ(0, set_ctrl(q->fd, ids[i], 1));
			index = next_frame(_metadata, q);
			profile(q->planes[index].map, &q->pix, i, after);
			ASSERT_EQ(0, enqueue(q, index));
			ASSERT_EQ(0, set_ctrl(q->fd, ids[i], 0));

			/* Nothing to see if that is the same from both sides. */
			if (differences(before, before, len, true) <= len / 2)
				continue;
			seen[i]++;
			EXPECT_GE(len / 4, differences(before, after, len, true)) {
				TH_LOG("pattern %d is not mirrored", pattern);
			}
		}
	}
	EXPECT_EQ(0, set_ctrl(q->fd, V4L2_CID_TEST_PATTERN, 0));
	/* The bars tell left from right, and there is one that tells top from bottom. */
	EXPECT_LT(0u, seen[0]);
	EXPECT_LT(0u, seen[1]);
}

/* read() gives frames one after the other, and those in pieces. */
TEST_F(capture, read)
{
	ssize_t size = self->q.pix.sizeimage, half = size / 2;
	struct queue other = { .type = CAPTURE };
	unsigned char *frame = malloc(size + 1);
	int i, counter, last = -1;

	ASSERT_NE(NULL, frame);
	ASSERT_EQ(0, fcntl(self->q.fd, F_SETFL, O_RDWR));
	for (i = 0; i < 8; i++) {
		memset(frame, 0x55, size + 1);
		if (i % 2) {
			ASSERT_EQ(half, read(self->q.fd, frame, half));
			ASSERT_EQ(size - half, read(self->q.fd, frame + half, size - half));
		} else {
			/* No more than a frame. */
			ASSERT_EQ(size, read(self->q.fd, frame, size + 1));
		}
		EXPECT_EQ(0x55, frame[size]);
		if (is_rust(capture_name())) {
			counter = counter_of(frame, &self->q.pix);
			EXPECT_LT(last, counter);
			last = counter;
		}
	}

	/* That is streaming, too. */
	EXPECT_EQ(-EBUSY, request(&self->q, V4L2_MEMORY_MMAP, 2));
	self->q.num = 0;
	other.fd = open_node(capture_name(), O_NONBLOCK);
	ASSERT_GE(other.fd, 0);
	EXPECT_EQ(-1, read(other.fd, frame, size));
	EXPECT_EQ(EBUSY, errno);
	close(other.fd);

	/* And it ends with the file. */
	close(self->q.fd);
	self->q.fd = open_node(capture_name(), O_NONBLOCK);
	ASSERT_GE(self->q.fd, 0);
	start_capture(_metadata, &self->q, 2);
	expect_frames(_metadata, &self->q, 2);
	free(frame);
}

TEST_F(capture, poll_and_select)
{
	struct pollfd poll_fd = { .fd = self->q.fd, .events = POLLIN };
	struct timeval timeout = { .tv_sec = TIMEOUT };
	struct queue *q = &self->q;
	struct v4l2_buffer buf;
	fd_set set;

	/* Not streaming. */
	ASSERT_EQ(0, allocate(q, 2));
	EXPECT_EQ(1, poll(&poll_fd, 1, 0));
	EXPECT_EQ(POLLERR, poll_fd.revents);
	/* Slow, so that there is nothing at first. */
	ASSERT_EQ(0, set_interval(q->fd, 1, 5));
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
	ASSERT_LE(0, dequeue(q, &buf));

	EXPECT_EQ(0, poll(&poll_fd, 1, 0));
	EXPECT_EQ(1, poll(&poll_fd, 1, TIMEOUT * 1000));
	EXPECT_EQ(POLLIN, poll_fd.revents);
	EXPECT_LE(0, dequeue_raw(q, &buf));
	EXPECT_EQ(0, poll(&poll_fd, 1, 0));

	ASSERT_EQ(0, enqueue(q, buf.index));
	FD_ZERO(&set);
	FD_SET(q->fd, &set);
	EXPECT_EQ(1, select(q->fd + 1, &set, NULL, NULL, &timeout));
	EXPECT_LE(0, dequeue_raw(q, &buf));
}

TEST_F(capture, nonblocking)
{
	struct queue *q = &self->q;
	struct v4l2_buffer buf;

	ASSERT_EQ(0, allocate(q, 2));
	EXPECT_EQ(-EINVAL, dequeue_raw(q, &buf));
	ASSERT_EQ(0, stream(q, true));
	/* Nothing is queued, so nothing will come. */
	EXPECT_EQ(-EAGAIN, dequeue_raw(q, &buf));
	ASSERT_EQ(0, enqueue(q, 0));
	EXPECT_EQ(0, dequeue(q, &buf));
	EXPECT_EQ(-EAGAIN, dequeue_raw(q, &buf));
}

TEST_F(capture, format_is_fixed_while_there_are_buffers)
{
	struct queue other = { .type = CAPTURE };
	struct queue *q = &self->q;
	struct v4l2_format format = { .type = CAPTURE };

	ASSERT_EQ(2, request(q, V4L2_MEMORY_MMAP, 2));
	EXPECT_EQ(-EBUSY, set_format(q, V4L2_PIX_FMT_RGB24, 640, 480));
	EXPECT_EQ(0, do_ioctl(q->fd, VIDIOC_G_FMT, &format));
	EXPECT_EQ(q->pix.sizeimage, format.fmt.pix.sizeimage);
	/* Nor is another file allowed to, or to have buffers. */
	other.fd = open_node(capture_name(), O_NONBLOCK);
	ASSERT_GE(other.fd, 0);
	EXPECT_EQ(-EBUSY, set_format(&other, V4L2_PIX_FMT_RGB24, 640, 480));
	EXPECT_EQ(-EBUSY, request(&other, V4L2_MEMORY_MMAP, 2));
	EXPECT_EQ(0, request(q, V4L2_MEMORY_MMAP, 0));
	EXPECT_EQ(0, set_format(&other, V4L2_PIX_FMT_RGB24, 640, 480));
	close(other.fd);
}

TEST_F(capture, create_buffers)
{
	struct v4l2_create_buffers create = {
		.count = 2,
		.memory = V4L2_MEMORY_MMAP,
		.format.type = CAPTURE,
	};
	struct queue *q = &self->q;
	unsigned int i;

	ASSERT_EQ(0, allocate(q, 2));
	ASSERT_EQ(0, do_ioctl(q->fd, VIDIOC_G_FMT, &create.format));
	create.format.fmt.pix.sizeimage -= 1;
	EXPECT_EQ(-EINVAL, do_ioctl(q->fd, VIDIOC_CREATE_BUFS, &create));
	create.count = 2;
	create.format.fmt.pix.sizeimage += 1 + getpagesize();
	ASSERT_EQ(0, do_ioctl(q->fd, VIDIOC_CREATE_BUFS, &create));
	EXPECT_EQ(2u, create.count);
	ASSERT_EQ(2u, create.index);
	q->num = 4;
	for (i = 2; i < 4; i++) {
		ASSERT_EQ(0, map_plane(q, i));
		EXPECT_LE(q->pix.sizeimage + getpagesize(), q->planes[i].size);
	}
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
	expect_frames(_metadata, q, 8);
}

/* A call that waits for a frame that never comes ends when streaming does. */
TEST_F(capture, streamoff_ends_dequeue)
{
	struct worker worker = { .q = &self->q };
	struct v4l2_buffer buf;

	ASSERT_EQ(0, fcntl(self->q.fd, F_SETFL, O_RDWR));
	ASSERT_EQ(0, allocate(&self->q, 2));
	ASSERT_EQ(0, stream(&self->q, true));
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, cycle, &worker));
	sleep_ms(100);
	/* One may wait at a time. */
	EXPECT_EQ(-EBUSY, dequeue_raw(&self->q, &buf));
	EXPECT_EQ(0, stream(&self->q, false));
	ASSERT_TRUE(join(&worker));
	EXPECT_EQ(-EINVAL, worker.ret);
	EXPECT_EQ(0, atomic_load(&worker.frames));
}

TEST_F(capture, streamoff_under_load)
{
	atomic_int stop = 0;
	struct worker worker = { .q = &self->q, .stop = &stop };
	struct queue *q = &self->q;
	int i;

	ASSERT_EQ(0, allocate(q, NUM_BUFS));
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, cycle_on, &worker));
	for (i = 0; i < 60; i++) {
		/* Those that the thread had the time to queue are queued already. */
		enqueue_all(q);
		ASSERT_EQ(0, stream(q, true));
		sleep_ms(i % 8 * 5);
		ASSERT_EQ(0, stream(q, false));
	}
	stop = 1;
	ASSERT_TRUE(join(&worker));
	EXPECT_LT(0, atomic_load(&worker.frames));
	ASSERT_EQ(0, stream(q, false));
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
	expect_frames(_metadata, q, 4);
}

/* Without the end of streaming, and with buffers in all states. */
TEST_F(capture, close_while_streaming)
{
	struct queue *q = &self->q;
	struct v4l2_buffer buf;
	int i, j;

	for (i = 0; i < 40; i++) {
		start_capture(_metadata, q, NUM_BUFS);
		if (i % 4 == 1)
			ASSERT_LE(0, dequeue(q, &buf));
		if (i % 4 == 2)
			sleep_ms(20);
		for (j = 0; j < (int)q->num; j++)
			drop_plane(&q->planes[j]);
		q->num = 0;
		ASSERT_EQ(0, close(q->fd));
		q->fd = open_node(capture_name(), O_NONBLOCK);
		ASSERT_GE(q->fd, 0);
	}
	start_capture(_metadata, q, NUM_BUFS);
	expect_frames(_metadata, q, 4);
}

/* Two descriptors of one buffer show the same frame, and live without each other. */
TEST_F(capture, export_twice)
{
	struct queue *q = &self->q;
	size_t size = q->pix.sizeimage;
	struct v4l2_buffer buf;
	unsigned char *map[2];
	struct stat stat[2];
	int i, fd[2];

	ASSERT_EQ(0, allocate(q, 1));
	for (i = 0; i < 2; i++) {
		fd[i] = export(q, 0, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd[i], 0);
		EXPECT_EQ(FD_CLOEXEC, fcntl(fd[i], F_GETFD));
		EXPECT_LE((off_t)size, lseek(fd[i], 0, SEEK_END));
		ASSERT_EQ(0, fstat(fd[i], &stat[i]));
		map[i] = map_fd(fd[i], size, PROT_READ | PROT_WRITE);
		ASSERT_NE(MAP_FAILED, map[i]);
	}
	EXPECT_NE(fd[0], fd[1]);
	if (self->before >= 0)
		EXPECT_EQ(self->before + (stat[0].st_ino == stat[1].st_ino ? 1 : 2),
			  num_buffers());

	memset(q->planes[0].map, 0x55, size);
	EXPECT_EQ(0x55, map[0][size - 1]);
	EXPECT_EQ(0x55, map[1][size - 1]);
	ASSERT_EQ(0, enqueue(q, 0));
	ASSERT_EQ(0, stream(q, true));
	ASSERT_EQ(0, dequeue(q, &buf));
	EXPECT_EQ(0, sync_fd(fd[0], DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ));
	EXPECT_EQ(0, sync_fd(fd[1], DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ));
	EXPECT_FRAME(q, &buf, map[0]);
	EXPECT_NE(0x55, map[0][size - 1] & map[0][size / 2] & map[0][size / 3]);
	EXPECT_EQ(0, memcmp(map[0], map[1], size));
	EXPECT_EQ(0, memcmp(map[0], q->planes[0].map, size));
	EXPECT_EQ(0, sync_fd(fd[0], DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ));
	EXPECT_EQ(0, sync_fd(fd[1], DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ));

	close(fd[0]);
	munmap(map[0], size);
	map[1][0] = ~map[1][0];
	EXPECT_EQ(map[1][0], q->planes[0].map[0]);
	ASSERT_EQ(0, enqueue(q, 0));
	ASSERT_EQ(0, dequeue(q, &buf));
	EXPECT_FRAME(q, &buf, map[1]);
	EXPECT_EQ(0, memcmp(map[1], q->planes[0].map, size));
	close(fd[1]);
	munmap(map[1], size);
}

TEST_F(capture, export_errors)
{
	struct queue *q = &self->q;
	int fd;

	EXPECT_EQ(-EINVAL, export(q, 0, O_RDWR));
	ASSERT_EQ(0, allocate(q, 1));
	EXPECT_EQ(-EINVAL, export(q, q->num, O_RDWR));
	EXPECT_EQ(-EINVAL, export(q, 0, O_RDWR | O_APPEND));
	/* Who asks for reading gets no more. */
	fd = export(q, 0, O_RDONLY | O_CLOEXEC);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(MAP_FAILED, map_fd(fd, 1, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	close(fd);
	release(q);
	/* What is imported is not exported again. */
	ASSERT_LT(0, request(q, V4L2_MEMORY_DMABUF, 1));
	EXPECT_EQ(-EINVAL, export(q, 0, O_RDWR));
}

/* The descriptor is closed while the device has the buffer. */
TEST_F(capture, close_export_while_queued)
{
	struct queue *q = &self->q;
	struct v4l2_buffer buf;
	int i, fd, index;

	start_capture(_metadata, q, 2);
	for (i = 0; i < 20; i++) {
		fd = export(q, i % 2, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd, 0);
		index = dequeue(q, &buf);
		ASSERT_GE(index, 0);
		EXPECT_FRAME(q, &buf, q->planes[index].map);
		ASSERT_EQ(0, enqueue(q, index));
		ASSERT_EQ(0, close(fd));
	}
}

/* The buffer outlives what it was made for: the queue, and the file. */
TEST_F(capture, export_outlives)
{
	struct queue *q = &self->q;
	size_t size = q->pix.sizeimage;
	unsigned char *map[2], *copy = malloc(size);
	struct v4l2_buffer buf;
	int i, fd;

	ASSERT_NE(NULL, copy);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, allocate(q, 2));
		fd = export(q, 0, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd, 0);
		map[0] = map_fd(fd, size, PROT_READ | PROT_WRITE);
		ASSERT_NE(MAP_FAILED, map[0]);
		ASSERT_EQ(0, enqueue(q, 0));
		ASSERT_EQ(0, stream(q, true));
		ASSERT_EQ(0, dequeue(q, &buf));
		EXPECT_FRAME(q, &buf, map[0]);
		memcpy(copy, map[0], size);
		/* It is being written when the queue goes, once. */
		if (i == 2)
			ASSERT_EQ(0, enqueue(q, 0));

		if (i) {
			munmap(q->planes[0].map, q->planes[0].size);
			munmap(q->planes[1].map, q->planes[1].size);
			q->num = 0;
			ASSERT_EQ(0, close(q->fd));
			q->fd = open_node(capture_name(), O_NONBLOCK);
			ASSERT_GE(q->fd, 0);
		} else {
			release(q);
		}
		EXPECT_EQ(0, sync_fd(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW));
		map[1] = map_fd(fd, size, PROT_READ | PROT_WRITE);
		ASSERT_NE(MAP_FAILED, map[1]);
		if (i < 2)
			EXPECT_EQ(0, memcmp(copy, map[1], size));
		/* Nobody writes to it but us. */
		start_capture(_metadata, q, 2);
		memset(map[0], 0x77, size);
		expect_frames(_metadata, q, 4);
		EXPECT_EQ(0x77, map[1][0]);
		EXPECT_EQ(0, memcmp(map[1], map[1] + 1, size - 1));
		EXPECT_EQ(0, sync_fd(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW));
		munmap(map[0], size);
		close(fd);
		/* The mapping is the last that keeps it. */
		EXPECT_EQ(0x77, map[1][size - 1]);
		munmap(map[1], size);
		release(q);
	}
	free(copy);
}

/* As long as it is mapped, REQBUFS does not take it away. */
TEST_F(capture, mapping_outlives_queue)
{
	struct queue *q = &self->q;
	size_t size = q->pix.sizeimage;
	unsigned char *map;

	ASSERT_EQ(0, allocate(q, 1));
	map = q->planes[0].map;
	memset(map, 0x33, size);
	ASSERT_EQ(0, request(q, V4L2_MEMORY_MMAP, 0));
	start_capture(_metadata, q, 2);
	expect_frames(_metadata, q, 4);
	EXPECT_EQ(0x33, map[0]);
	EXPECT_EQ(0, memcmp(map, map + 1, size - 1));
	munmap(map, size);
}

TEST_F(capture, import)
{
	struct queue *q = &self->q;

	if (!have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	ASSERT_EQ(0, import_foreign(q, NUM_BUFS));
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
	expect_frames(_metadata, q, 12);
	/* And again, with what was attached before. */
	ASSERT_EQ(0, stream(q, false));
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
	expect_frames(_metadata, q, 4);
}

/* The descriptor is closed as soon as the buffer is queued. */
TEST_F(capture, close_import_while_queued)
{
	struct queue *q = &self->q;
	int i, index;
	struct v4l2_buffer buf;

	if (!have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	ASSERT_EQ(0, import_foreign(q, 2));
	ASSERT_EQ(0, stream(q, true));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, enqueue(q, i));
		close(q->planes[i].fd);
		q->planes[i].fd = -1;
	}
	for (i = 0; i < 2; i++) {
		index = dequeue(q, &buf);
		ASSERT_GE(index, 0);
		EXPECT_FRAME(q, &buf, q->planes[index].map);
		/* It is not there any more for user space. */
		EXPECT_EQ(-EINVAL, enqueue(q, index));
	}
}

/* The buffer of an index changes, and a buffer has two of them. */
TEST_F(capture, import_changes)
{
	struct queue *q = &self->q;
	int i, last = -1;
	struct v4l2_buffer buf;

	if (!have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	ASSERT_EQ(0, import_foreign(q, 3));
	ASSERT_EQ(0, stream(q, true));
	for (i = 0; i < 12; i++) {
		if (last >= 0)
			memset(q->planes[last].map, 0x44, q->pix.sizeimage);
		ASSERT_EQ(0, enqueue_fd(q, 0, q->planes[i % 3].fd, 0, 0));
		ASSERT_EQ(0, dequeue(q, &buf));
		EXPECT_FRAME(q, &buf, q->planes[i % 3].map);
		if (last >= 0)
			EXPECT_EQ(0, memcmp(q->planes[last].map, q->planes[last].map + 1,
					    q->pix.sizeimage - 1));
		last = i % 3;
	}
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, enqueue_fd(q, 0, q->planes[0].fd, 0, 0));
		ASSERT_EQ(0, enqueue_fd(q, 1, q->planes[0].fd, 0, 0));
		ASSERT_LE(0, dequeue(q, &buf));
		ASSERT_LE(0, dequeue(q, &buf));
		EXPECT_FRAME(q, &buf, q->planes[0].map);
	}
}

/* What it exported itself, from a queue that is gone. */
TEST_F(capture, import_own_export)
{
	struct queue *q = &self->q;
	unsigned char *map[2];
	int i, fd[2];

	ASSERT_EQ(0, allocate(q, 2));
	for (i = 0; i < 2; i++) {
		fd[i] = export(q, i, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd[i], 0);
		map[i] = map_fd(fd[i], q->pix.sizeimage, PROT_READ | PROT_WRITE);
		ASSERT_NE(MAP_FAILED, map[i]);
	}
	release(q);

	ASSERT_EQ(2, request(q, V4L2_MEMORY_DMABUF, 2));
	for (i = 0; i < 2; i++) {
		q->planes[i].fd = fd[i];
		q->planes[i].map = map[i];
		q->planes[i].size = q->pix.sizeimage;
	}
	ASSERT_EQ(0, enqueue_all(q));
	ASSERT_EQ(0, stream(q, true));
	expect_frames(_metadata, q, 8);
}

TEST_F(capture, import_bad_descriptor)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct queue *q = &self->q;
	unsigned int i;
	int memfd = memfd_create("rust-v4l2", MFD_CLOEXEC);

	ASSERT_GE(null, 0);
	ASSERT_GE(memfd, 0);
	ASSERT_EQ(0, ftruncate(memfd, q->pix.sizeimage));
	ASSERT_EQ(2, request(q, V4L2_MEMORY_DMABUF, 2));
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, -1, q->pix.sizeimage, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, 1000, q->pix.sizeimage, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, null, q->pix.sizeimage, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, memfd, q->pix.sizeimage, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, memfd, 0, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, q->fd, q->pix.sizeimage, 0));
		/* The second time while streaming. */
		if (!i)
			ASSERT_EQ(0, stream(q, true));
	}
	/* Not for what it said that it would queue. */
	q->memory = V4L2_MEMORY_MMAP;
	EXPECT_EQ(-EINVAL, enqueue(q, 0));
	q->memory = V4L2_MEMORY_DMABUF;
	close(memfd);
	close(null);
}

/*
 * A buffer that is too small, and one that is said to be larger than it is. videobuf2 leaks a
 * reference to the latter, which the next tests do not count.
 */
TEST_F(capture, import_too_small)
{
	struct queue *q = &self->q;
	int small, large;
	struct v4l2_buffer buf;

	ASSERT_LT(getpagesize(), (int)q->pix.sizeimage);
	small = foreign_buffer(1);
	large = foreign_buffer(q->pix.sizeimage);
	if (small < 0 || large < 0)
		SKIP(return, NO_FOREIGN_BUFFERS);
	ASSERT_EQ(2, request(q, V4L2_MEMORY_DMABUF, 2));
	EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, small, 0, 0));
	EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, small, getpagesize(), 0));
	EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, large, q->pix.sizeimage - 1, 0));
	self->leaks = true;
	EXPECT_EQ(-EFAULT, enqueue_fd(q, 0, small, q->pix.sizeimage, 0));

	/* The index is as good as before. */
	ASSERT_EQ(0, enqueue_fd(q, 0, large, 0, 0));
	ASSERT_EQ(0, stream(q, true));
	ASSERT_EQ(0, dequeue(q, &buf));
	EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, small, 0, 0));
	ASSERT_EQ(0, enqueue_fd(q, 0, large, 0, 0));
	ASSERT_EQ(0, dequeue(q, &buf));
	close(small);
	close(large);
}

/* Nothing is left behind by many exports and imports. */
TEST_F(capture, no_leaks)
{
	struct queue *q = &self->q;
	bool foreign = have_foreign_buffers();
	int i, fd[3];

	if (self->before < 0)
		SKIP(return, BUFINFO ": %s", strerror(errno));
	for (i = 0; i < 20; i++) {
		start_capture(_metadata, q, 3);
		fd[0] = export(q, 0, O_RDWR);
		fd[1] = export(q, 1, O_RDWR);
		fd[2] = export(q, 0, O_RDWR);
		ASSERT_LE(self->before + 2, num_buffers());
		if (i % 2)
			release(q);
		ASSERT_TRUE(!close(fd[0]) && !close(fd[1]) && !close(fd[2]));
		release(q);
		if (!foreign)
			continue;
		ASSERT_EQ(0, import_foreign(q, 3));
		ASSERT_EQ(0, enqueue_all(q));
		if (i % 3)
			ASSERT_EQ(0, stream(q, true));
		release(q);
	}
	EXPECT_EQ(self->before, num_buffers_is(self->before));
}

int main(int argc, char **argv)
{
	prepare_device(capture_name());

	return test_harness_run(argc, argv);
}
