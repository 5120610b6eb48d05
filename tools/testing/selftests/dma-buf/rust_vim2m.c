// SPDX-License-Identifier: GPL-2.0
/*
 * The V4L2 mem2mem driver of samples/rust/rust_vim2m.rs: its frames, and what becomes of the
 * buffers that it exports and imports.
 */

#define _GNU_SOURCE
#include "rust_v4l2.h"

/* By how much a frame differs from the image. */
static int compare_image(const unsigned char *frame, const struct v4l2_pix_format *pix,
			 unsigned int seed)
{
	unsigned int x, y;
	int diff, max = 0;

	for (y = 0; y < pix->height; y++) {
		for (x = 0; x < pix->width; x++) {
			diff = distance(get_rgb(frame, pix, x, y), image(seed, x, y));
			max = diff > max ? diff : max;
		}
	}

	return max;
}

FIXTURE(m2m) {
	struct m2m m2m;
	int before;
	bool leaks;
};

FIXTURE_SETUP(m2m)
{
	const char *name = m2m_name();

	self->before = num_buffers();
	if (m2m_open(&self->m2m, O_NONBLOCK) < 0)
		SKIP(return, "%s: %s (modprobe %s)", name, strerror(-self->m2m.out.fd), name);
	ASSERT_EQ(0, m2m_set_format(&self->m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24, WIDTH,
				    HEIGHT));
	ASSERT_EQ(WIDTH, (int)self->m2m.cap.pix.width);
	ASSERT_EQ(HEIGHT, (int)self->m2m.cap.pix.height);
}

FIXTURE_TEARDOWN(m2m)
{
	m2m_close(&self->m2m);
	if (!_metadata->exit_code && !self->leaks)
		EXPECT_EQ(self->before, num_buffers_is(self->before));
}

static const __u32 rgb_formats[] = {
	V4L2_PIX_FMT_RGB24,
	V4L2_PIX_FMT_XRGB32,
	V4L2_PIX_FMT_RGB565,
};

TEST_F(m2m, formats)
{
	static const __u32 types[] = { OUTPUT, CAPTURE };
	struct v4l2_capability cap;
	struct v4l2_fmtdesc desc;
	unsigned int i, t, found;

	if (!is_rust(m2m_name()))
		SKIP(return, "not a Rust sample: it has other formats");
	ASSERT_EQ(0, do_ioctl(self->m2m.out.fd, VIDIOC_QUERYCAP, &cap));
	EXPECT_NE(0u, cap.device_caps & V4L2_CAP_VIDEO_M2M);
	EXPECT_NE(0u, cap.device_caps & V4L2_CAP_STREAMING);
	for (t = 0; t < ARRAY_SIZE(types); t++) {
		found = 0;
		desc = (struct v4l2_fmtdesc){ .type = types[t] };
		for (; !do_ioctl(self->m2m.out.fd, VIDIOC_ENUM_FMT, &desc); desc.index++)
			for (i = 0; i < ARRAY_SIZE(rgb_formats); i++)
				if (desc.pixelformat == rgb_formats[i])
					found |= 1 << i;
		EXPECT_EQ(ARRAY_SIZE(rgb_formats), desc.index);
		EXPECT_EQ((1u << ARRAY_SIZE(rgb_formats)) - 1, found);
	}
}

/* From each format to each, mirrored in all ways. */
TEST_F(m2m, pixels)
{
	struct m2m *m2m = &self->m2m;
	unsigned int in, out, flips, max, done = 0;
	int diff;

	for (in = 0; in < ARRAY_SIZE(rgb_formats); in++) {
		for (out = 0; out < ARRAY_SIZE(rgb_formats); out++) {
			if (m2m_set_format(m2m, rgb_formats[in], rgb_formats[out], WIDTH, HEIGHT)) {
				EXPECT_FALSE(is_rust(m2m_name()));
				continue;
			}
			/* vim2m doubles pixels of 565, and mirrors only what it copies. */
			if (is_rust(m2m_name()) || in == out)
				max = 4;
			else
				max = rgb_formats[out] != V4L2_PIX_FMT_RGB565;
			start_m2m(_metadata, m2m, 1);
			for (flips = 0; flips < max; flips++) {
				ASSERT_EQ(0, set_ctrl(m2m->out.fd, V4L2_CID_HFLIP, flips & 1));
				ASSERT_EQ(0, set_ctrl(m2m->out.fd, V4L2_CID_VFLIP, flips >> 1));
				draw_image(m2m->out.planes[0].map, &m2m->out.pix, flips);
				memset(m2m->cap.planes[0].map, 0x55, m2m->cap.pix.sizeimage);
				ASSERT_EQ(0, job(m2m, 0, 0, 0));
				diff = compare(m2m->cap.planes[0].map, &m2m->cap.pix,
					       m2m->out.planes[0].map, &m2m->out.pix, flips & 1,
					       flips >> 1);
				/* 565 has eight steps less of each colour. */
				EXPECT_GE(in != out && (rgb_formats[in] == V4L2_PIX_FMT_RGB565 ||
							rgb_formats[out] == V4L2_PIX_FMT_RGB565) ?
					  8 : 0, diff);
				done++;
			}
			release(&m2m->out);
			release(&m2m->cap);
		}
	}
	EXPECT_EQ(is_rust(m2m_name()) ? 36u : 9u, done);
	EXPECT_EQ(0, set_ctrl(m2m->out.fd, V4L2_CID_HFLIP, 0));
	EXPECT_EQ(0, set_ctrl(m2m->out.fd, V4L2_CID_VFLIP, 0));
}

/* From a size to others, mirrored in all ways. */
TEST_F(m2m, scaling)
{
	static const struct {
		__u32 width;
		__u32 height;
	} to[] = {
		{ 2 * WIDTH, 2 * HEIGHT },
		{ WIDTH / 2, HEIGHT / 2 },
		{ 16, 16 },
		{ 100, 130 },
	};
	struct m2m *m2m = &self->m2m;
	unsigned int i, flips;

	if (!is_rust(m2m_name()))
		SKIP(return, "not a Rust sample: it does so in another way");
	for (i = 0; i < ARRAY_SIZE(to); i++) {
		ASSERT_EQ(0, set_format(&m2m->cap, V4L2_PIX_FMT_XRGB32, to[i].width, to[i].height));
		ASSERT_EQ(to[i].width, m2m->cap.pix.width);
		ASSERT_EQ(to[i].height, m2m->cap.pix.height);
		ASSERT_EQ(to[i].width * to[i].height * 4, m2m->cap.pix.sizeimage);
		start_m2m(_metadata, m2m, 1);
		draw_image(m2m->out.planes[0].map, &m2m->out.pix, i);
		for (flips = 0; flips < 4; flips++) {
			ASSERT_EQ(0, set_ctrl(m2m->out.fd, V4L2_CID_HFLIP, flips & 1));
			ASSERT_EQ(0, set_ctrl(m2m->out.fd, V4L2_CID_VFLIP, flips >> 1));
			memset(m2m->cap.planes[0].map, 0x55, m2m->cap.pix.sizeimage);
			ASSERT_EQ(0, job(m2m, 0, 0, 0));
			EXPECT_EQ(0, compare(m2m->cap.planes[0].map, &m2m->cap.pix,
					     m2m->out.planes[0].map, &m2m->out.pix, flips & 1,
					     flips >> 1));
		}
		release(&m2m->out);
		release(&m2m->cap);
	}
}

TEST_F(m2m, frame_sizes)
{
	struct m2m *m2m = &self->m2m;

	if (!is_rust(m2m_name()))
		SKIP(return, "not a Rust sample: it has other sizes");
	ASSERT_EQ(0, set_format(&m2m->out, V4L2_PIX_FMT_RGB565, 1, 1));
	EXPECT_EQ(16u, m2m->out.pix.width);
	EXPECT_EQ(16u, m2m->out.pix.height);
	ASSERT_EQ(0, set_format(&m2m->cap, V4L2_PIX_FMT_XRGB32, 1000000, 1000000));
	EXPECT_EQ(1920u, m2m->cap.pix.width);
	EXPECT_EQ(1080u, m2m->cap.pix.height);
	EXPECT_EQ(1920u * 1080 * 4, m2m->cap.pix.sizeimage);
	/* The one does not change the other. */
	EXPECT_EQ(16u * 16 * 2, m2m->out.pix.sizeimage);
	start_m2m(_metadata, m2m, 1);
	expect_job(_metadata, m2m, 0, 0, 1);
}

/*
 * The layout of formats, which both ends above might have wrong: white, black, red, green, blue,
 * and something between.
 */
static const unsigned char rgb24_bytes[] = {
	255, 255, 255,	0, 0, 0,	255, 0, 0,	0, 255, 0,	0, 0, 255,	16, 132, 64,
};

static const unsigned char rgb565_bytes[] = {
	0xff, 0xff,	0, 0,		0, 0xf8,	0xe0, 0x07,	0x1f, 0,	0x28, 0x14,
};

static const unsigned char xrgb32_bytes[] = {
	9, 255, 255, 255,	9, 0, 0, 0,		9, 255, 0, 0,
	9, 0, 255, 0,		9, 0, 0, 255,		9, 16, 132, 64,
};

/* What becomes of the bytes at the beginning of a frame. */
static const unsigned char *convert(struct __test_metadata *_metadata, struct m2m *m2m, __u32 from,
				    __u32 to, const unsigned char *bytes, size_t size)
{
	ASSERT_EQ(0, m2m_set_format(m2m, from, to, WIDTH, HEIGHT));
	start_m2m(_metadata, m2m, 1);
	memset(m2m->out.planes[0].map, 0, m2m->out.pix.sizeimage);
	memcpy(m2m->out.planes[0].map, bytes, size);
	memset(m2m->cap.planes[0].map, 0x55, m2m->cap.pix.sizeimage);
	ASSERT_EQ(0, job(m2m, 0, 0, 0));

	return m2m->cap.planes[0].map;
}

TEST_F(m2m, bytes_to_rgb565)
{
	const unsigned char *seen;

	if (!is_rust(m2m_name()))
		SKIP(return, "not a Rust sample: it doubles every other pixel");
	seen = convert(_metadata, &self->m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB565, rgb24_bytes,
		       sizeof(rgb24_bytes));
	EXPECT_EQ(0, memcmp(seen, rgb565_bytes, sizeof(rgb565_bytes)));
}

TEST_F(m2m, bytes_from_rgb565)
{
	const unsigned char *seen;
	unsigned int i;

	seen = convert(_metadata, &self->m2m, V4L2_PIX_FMT_RGB565, V4L2_PIX_FMT_RGB24, rgb565_bytes,
		       sizeof(rgb565_bytes));
	for (i = 0; i < sizeof(rgb24_bytes); i++)
		EXPECT_GE(8, abs(seen[i] - rgb24_bytes[i]));
}

TEST_F(m2m, bytes_to_xrgb32)
{
	const unsigned char *seen;
	unsigned int i;

	if (!is_rust(m2m_name()))
		SKIP(return, "not a Rust sample: it has no XRGB32");
	seen = convert(_metadata, &self->m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_XRGB32, rgb24_bytes,
		       sizeof(rgb24_bytes));
	for (i = 0; i < sizeof(xrgb32_bytes); i++)
		if (i % 4)
			EXPECT_EQ(xrgb32_bytes[i], seen[i]);
}

TEST_F(m2m, bytes_from_xrgb32)
{
	const unsigned char *seen;

	if (!is_rust(m2m_name()))
		SKIP(return, "not a Rust sample: it has no XRGB32");
	seen = convert(_metadata, &self->m2m, V4L2_PIX_FMT_XRGB32, V4L2_PIX_FMT_RGB24, xrgb32_bytes,
		       sizeof(xrgb32_bytes));
	EXPECT_EQ(0, memcmp(seen, rgb24_bytes, sizeof(rgb24_bytes)));
}

/* Controls belong to a file. */
TEST_F(m2m, controls_of_two_files)
{
	struct m2m other;
	int i;

	ASSERT_LE(0, m2m_open(&other, O_NONBLOCK));
	ASSERT_EQ(0, m2m_set_format(&other, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
	ASSERT_EQ(0, set_ctrl(other.out.fd, V4L2_CID_VFLIP, 1));
	start_m2m(_metadata, &self->m2m, 1);
	start_m2m(_metadata, &other, 1);
	for (i = 0; i < 3; i++) {
		expect_job(_metadata, &self->m2m, 0, 0, i);
		draw_image(other.out.planes[0].map, &other.out.pix, i);
		ASSERT_EQ(0, job(&other, 0, 0, 0));
		EXPECT_EQ(0, compare(other.cap.planes[0].map, &other.cap.pix,
				     other.out.planes[0].map, &other.out.pix, false, true));
	}
	m2m_close(&other);
}

/* Frames leave in the order in which they came, with their times. */
TEST_F(m2m, order_and_timestamps)
{
	struct m2m *m2m = &self->m2m;
	unsigned int i, in = 0, out = 0;
	struct v4l2_buffer buf;
	int index;

	start_m2m(_metadata, m2m, NUM_BUFS);
	for (i = 0; i < NUM_BUFS; i++) {
		draw_image(m2m->out.planes[i].map, &m2m->out.pix, in);
		/* Times that are not in order, as those of a decoder are not. */
		ASSERT_EQ(0, enqueue_at(&m2m->out, i, (1000 + (in ^ 3)) * NSEC + in * 1000));
		in++;
	}
	ASSERT_EQ(0, enqueue_all(&m2m->cap));
	while (out < 24) {
		index = dequeue(&m2m->cap, &buf);
		ASSERT_GE(index, 0);
		EXPECT_EQ((1000 + (out ^ 3)) * NSEC + out * 1000, timestamp(&buf));
		EXPECT_EQ((__u32)V4L2_BUF_FLAG_TIMESTAMP_COPY,
			  buf.flags & V4L2_BUF_FLAG_TIMESTAMP_MASK);
		EXPECT_EQ(out, buf.sequence);
		EXPECT_EQ(0, compare_image(m2m->cap.planes[index].map, &m2m->cap.pix, out));
		ASSERT_EQ(0, enqueue(&m2m->cap, index));
		index = dequeue(&m2m->out, &buf);
		ASSERT_GE(index, 0);
		EXPECT_EQ((1000 + (out ^ 3)) * NSEC + out * 1000, timestamp(&buf));
		out++;
		if (in < 24) {
			draw_image(m2m->out.planes[index].map, &m2m->out.pix, in);
			ASSERT_EQ(0, enqueue_at(&m2m->out, index,
						(1000 + (in ^ 3)) * NSEC + in * 1000));
			in++;
		}
	}
	EXPECT_EQ(-EAGAIN, dequeue_raw(&m2m->cap, &buf));
	EXPECT_EQ(-EAGAIN, dequeue_raw(&m2m->out, &buf));
}

TEST_F(m2m, poll_and_nonblocking)
{
	struct pollfd poll_fd = { .fd = self->m2m.out.fd, .events = POLLIN | POLLOUT };
	struct m2m *m2m = &self->m2m;
	struct v4l2_buffer buf;
	int i;

	EXPECT_EQ(1, poll(&poll_fd, 1, 0));
	EXPECT_EQ(POLLERR, poll_fd.revents);
	start_m2m(_metadata, m2m, 1);
	EXPECT_EQ(-EAGAIN, dequeue_raw(&m2m->cap, &buf));
	EXPECT_EQ(-EAGAIN, dequeue_raw(&m2m->out, &buf));
	ASSERT_EQ(0, enqueue(&m2m->cap, 0));
	/* There is nothing to do yet. */
	EXPECT_EQ(0, poll(&poll_fd, 1, 50));
	ASSERT_EQ(0, enqueue(&m2m->out, 0));
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(1, poll(&poll_fd, 1, TIMEOUT * 1000));
		if (poll_fd.revents == (POLLIN | POLLOUT))
			break;
		sleep_ms(10);
	}
	EXPECT_EQ(POLLIN | POLLOUT, poll_fd.revents);
	EXPECT_EQ(0, dequeue_raw(&m2m->cap, &buf));
	EXPECT_EQ(0, dequeue_raw(&m2m->out, &buf));
}

TEST_F(m2m, format_is_fixed_while_there_are_buffers)
{
	struct m2m *m2m = &self->m2m;

	ASSERT_EQ(1, request(&m2m->out, V4L2_MEMORY_MMAP, 1));
	EXPECT_EQ(-EBUSY, set_format(&m2m->out, V4L2_PIX_FMT_RGB24, 128, 96));
	EXPECT_EQ(0, request(&m2m->out, V4L2_MEMORY_MMAP, 0));
	ASSERT_EQ(1, request(&m2m->cap, V4L2_MEMORY_MMAP, 1));
	EXPECT_EQ(-EBUSY, set_format(&m2m->cap, V4L2_PIX_FMT_RGB565, WIDTH, HEIGHT));
	EXPECT_EQ(0, request(&m2m->cap, V4L2_MEMORY_MMAP, 0));
	EXPECT_EQ(0, set_format(&m2m->out, V4L2_PIX_FMT_RGB24, 128, 96));
}

/* What goes in may change when there are buffers already for what comes out. */
TEST_F(m2m, output_format_changes_under_capture_buffers)
{
	struct m2m *m2m = &self->m2m;
	struct v4l2_buffer buf;

	if (!is_rust(m2m_name()))
		SKIP(return, "not a Rust sample: it scales in another way");
	ASSERT_EQ(0, allocate(&m2m->cap, 1));
	ASSERT_EQ(0, enqueue(&m2m->cap, 0));
	ASSERT_EQ(0, set_format(&m2m->out, V4L2_PIX_FMT_XRGB32, 320, 240));
	ASSERT_EQ(0, allocate(&m2m->out, 1));
	draw_image(m2m->out.planes[0].map, &m2m->out.pix, 1);
	ASSERT_EQ(0, enqueue(&m2m->out, 0));
	ASSERT_EQ(0, m2m_stream(m2m, true));
	ASSERT_EQ(0, dequeue(&m2m->cap, &buf));
	EXPECT_EQ(m2m->cap.pix.sizeimage, buf.bytesused);
	EXPECT_EQ(0, compare(m2m->cap.planes[0].map, &m2m->cap.pix, m2m->out.planes[0].map,
			     &m2m->out.pix, false, false));
}

/* Jobs run while streaming ends, on either side first; and with the file. */
TEST_F_TIMEOUT(m2m, stop_with_jobs, 60)
{
	struct m2m *m2m = &self->m2m;
	unsigned int i, j;

	for (i = 0; i < 60; i++) {
		start_m2m(_metadata, m2m, NUM_BUFS);
		ASSERT_EQ(0, enqueue_all(&m2m->cap));
		ASSERT_EQ(0, enqueue_all(&m2m->out));
		if (i % 5 == 4)
			sleep_ms(i % 3);
		switch (i % 3) {
		case 0:
			ASSERT_EQ(0, stream(&m2m->out, false));
			ASSERT_EQ(0, stream(&m2m->cap, false));
			break;
		case 1:
			ASSERT_EQ(0, stream(&m2m->cap, false));
			ASSERT_EQ(0, stream(&m2m->out, false));
			break;
		default:
			for (j = 0; j < NUM_BUFS; j++) {
				drop_plane(&m2m->out.planes[j]);
				drop_plane(&m2m->cap.planes[j]);
			}
			ASSERT_EQ(0, close(m2m->out.fd));
			ASSERT_LE(0, m2m_open(m2m, O_NONBLOCK));
			ASSERT_EQ(0, m2m_set_format(m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24,
						    WIDTH, HEIGHT));
			continue;
		}
		/* It can go on. */
		ASSERT_EQ(0, m2m_stream(m2m, true));
		expect_job(_metadata, m2m, 0, 0, i);
		release(&m2m->out);
		release(&m2m->cap);
	}
	start_m2m(_metadata, m2m, 1);
	expect_job(_metadata, m2m, 0, 0, 1);
}

TEST_F(m2m, streamoff_ends_dequeue)
{
	struct m2m *m2m = &self->m2m;
	struct worker worker = { .q = &m2m->cap };

	ASSERT_EQ(0, fcntl(m2m->cap.fd, F_SETFL, O_RDWR));
	start_m2m(_metadata, m2m, 1);
	ASSERT_EQ(0, enqueue(&m2m->cap, 0));
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, cycle, &worker));
	sleep_ms(100);
	EXPECT_EQ(0, stream(&m2m->cap, false));
	ASSERT_TRUE(join(&worker));
	EXPECT_EQ(-EINVAL, worker.ret);
	EXPECT_EQ(0, atomic_load(&worker.frames));
}

TEST_F(m2m, streamoff_under_load)
{
	struct m2m *m2m = &self->m2m;
	atomic_int stop = 0;
	struct worker workers[2] = {
		{ .q = &m2m->out, .stop = &stop },
		{ .q = &m2m->cap, .stop = &stop },
	};
	int i;

	start_m2m(_metadata, m2m, NUM_BUFS);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, cycle_on, &workers[i]));
	for (i = 0; i < 60; i++) {
		enqueue_all(&m2m->out);
		enqueue_all(&m2m->cap);
		sleep_ms(i % 8);
		ASSERT_EQ(0, stream(i % 2 ? &m2m->out : &m2m->cap, false));
		if (i % 3 == 0)
			ASSERT_EQ(0, stream(i % 2 ? &m2m->cap : &m2m->out, false));
		ASSERT_EQ(0, m2m_stream(m2m, true));
	}
	stop = 1;
	ASSERT_TRUE(join(&workers[0]) && join(&workers[1]));
	EXPECT_LT(0, atomic_load(&workers[0].frames));
	EXPECT_LT(0, atomic_load(&workers[1].frames));
	ASSERT_EQ(0, m2m_stream(m2m, false));
	ASSERT_EQ(0, m2m_stream(m2m, true));
	expect_job(_metadata, m2m, 0, 0, 1);
}

struct context {
	pthread_t thread;
	unsigned int number;
	int jobs;
	int bad;
	int ret;
};

/* A file with a size and a direction of its own, and images that no other one has. */
static void *run_context(void *arg)
{
	struct context *context = arg;
	bool hflip = context->number & 1, vflip = context->number & 2;
	struct m2m m2m;
	int ret, i;

	ret = m2m_open(&m2m, O_NONBLOCK);
	if (ret < 0)
		goto out;
	ret = m2m_set_format(&m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24,
			     WIDTH + 16 * context->number, HEIGHT);
	ret = ret ?: set_ctrl(m2m.out.fd, V4L2_CID_HFLIP, hflip);
	ret = ret ?: set_ctrl(m2m.out.fd, V4L2_CID_VFLIP, vflip);
	ret = ret ?: allocate(&m2m.out, 1);
	ret = ret ?: allocate(&m2m.cap, 1);
	ret = ret ?: m2m_stream(&m2m, true);
	for (i = 0; !ret && i < 20; i++) {
		draw_image(m2m.out.planes[0].map, &m2m.out.pix, context->number * 20 + i);
		memset(m2m.cap.planes[0].map, 0x55, m2m.cap.pix.sizeimage);
		ret = job(&m2m, 0, 0, i * NSEC);
		context->bad += !ret && compare(m2m.cap.planes[0].map, &m2m.cap.pix,
						m2m.out.planes[0].map, &m2m.out.pix, hflip, vflip);
		context->jobs += !ret;
	}
	m2m_close(&m2m);
out:
	context->ret = ret;

	return NULL;
}

TEST_F(m2m, contexts)
{
	struct context contexts[5] = { 0 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(contexts); i++) {
		contexts[i].number = i;
		ASSERT_EQ(0, pthread_create(&contexts[i].thread, NULL, run_context, &contexts[i]));
	}
	for (i = 0; i < ARRAY_SIZE(contexts); i++) {
		ASSERT_EQ(0, pthread_join(contexts[i].thread, NULL));
		EXPECT_EQ(0, contexts[i].ret);
		EXPECT_EQ(20, contexts[i].jobs);
		EXPECT_EQ(0, contexts[i].bad);
	}
}

TEST_F(m2m, import)
{
	struct m2m *m2m = &self->m2m;
	int i;

	if (!have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	ASSERT_EQ(0, import_foreign(&m2m->out, 2));
	ASSERT_EQ(0, import_foreign(&m2m->cap, 2));
	ASSERT_EQ(0, m2m_stream(m2m, true));
	for (i = 0; i < 8; i++)
		expect_job(_metadata, m2m, i % 2, i / 2 % 2, i);
}

/* The descriptors are closed as soon as the buffers are queued. */
TEST_F(m2m, close_import_while_queued)
{
	struct m2m *m2m = &self->m2m;
	struct v4l2_buffer buf;

	if (!have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	ASSERT_EQ(0, import_foreign(&m2m->out, 1));
	ASSERT_EQ(0, import_foreign(&m2m->cap, 1));
	draw_image(m2m->out.planes[0].map, &m2m->out.pix, 7);
	ASSERT_EQ(0, enqueue(&m2m->out, 0));
	ASSERT_EQ(0, enqueue(&m2m->cap, 0));
	close(m2m->out.planes[0].fd);
	close(m2m->cap.planes[0].fd);
	m2m->out.planes[0].fd = -1;
	m2m->cap.planes[0].fd = -1;
	ASSERT_EQ(0, m2m_stream(m2m, true));
	ASSERT_EQ(0, dequeue(&m2m->cap, &buf));
	EXPECT_EQ(0, compare_image(m2m->cap.planes[0].map, &m2m->cap.pix, 7));
}

TEST_F(m2m, import_bad_descriptor)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct queue *queues[] = { &self->m2m.out, &self->m2m.cap };
	struct queue *q;
	int i;

	ASSERT_GE(null, 0);
	for (i = 0; i < 2; i++) {
		q = queues[i];
		ASSERT_EQ(1, request(q, V4L2_MEMORY_DMABUF, 1));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, -1, q->pix.sizeimage, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, 1000, q->pix.sizeimage, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, null, q->pix.sizeimage, 0));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, q->fd, q->pix.sizeimage, 0));
	}
	close(null);
}

/* As for the capture device. */
TEST_F(m2m, import_too_small)
{
	struct queue *queues[] = { &self->m2m.out, &self->m2m.cap };
	int i, small = foreign_buffer(1);
	struct queue *q;

	if (small < 0)
		SKIP(return, NO_FOREIGN_BUFFERS);
	self->leaks = true;
	for (i = 0; i < 2; i++) {
		q = queues[i];
		ASSERT_LT(getpagesize(), (int)q->pix.sizeimage);
		ASSERT_EQ(1, request(q, V4L2_MEMORY_DMABUF, 1));
		EXPECT_EQ(-EINVAL, enqueue_fd(q, 0, small, getpagesize(), 0));
		EXPECT_EQ(-EFAULT, enqueue_fd(q, 0, small, q->pix.sizeimage, 0));
	}
	close(small);
}

/* What comes out goes in again: the buffers of one queue, imported by the other one. */
TEST_F(m2m, import_own_export)
{
	struct m2m *m2m = &self->m2m;
	struct queue *out = &m2m->out, *cap = &m2m->cap;
	int i;

	ASSERT_EQ(0, allocate(cap, 2));
	ASSERT_EQ(2, request(out, V4L2_MEMORY_DMABUF, 2));
	for (i = 0; i < 2; i++) {
		out->planes[i].fd = export(cap, i, O_RDWR | O_CLOEXEC);
		ASSERT_GE(out->planes[i].fd, 0);
	}
	ASSERT_EQ(0, set_ctrl(out->fd, V4L2_CID_HFLIP, 1));
	ASSERT_EQ(0, m2m_stream(m2m, true));
	draw_image(cap->planes[0].map, &cap->pix, 1);
	ASSERT_EQ(0, job(m2m, 0, 1, NSEC));
	EXPECT_LT(0, compare_image(cap->planes[1].map, &cap->pix, 1));
	memset(cap->planes[0].map, 0, cap->pix.sizeimage);
	ASSERT_EQ(0, job(m2m, 1, 0, NSEC));
	EXPECT_EQ(0, compare_image(cap->planes[0].map, &cap->pix, 1));

	/* From a buffer to itself: whatever that makes of it, it ends. */
	for (i = 0; i < 4; i++)
		ASSERT_EQ(0, job(m2m, 0, 0, NSEC));
	ASSERT_EQ(0, set_ctrl(out->fd, V4L2_CID_HFLIP, 0));
	draw_image(cap->planes[0].map, &cap->pix, 2);
	ASSERT_EQ(0, job(m2m, 0, 1, NSEC));
	EXPECT_EQ(0, compare_image(cap->planes[1].map, &cap->pix, 2));
}

/* From file to file. What the first exported outlives its queues, and then it. */
TEST_F(m2m, import_export_of_another_file)
{
	struct m2m *m2m = &self->m2m, other;
	struct plane *plane;
	int i;

	start_m2m(_metadata, m2m, 2);
	expect_job(_metadata, m2m, 0, 0, 3);
	expect_job(_metadata, m2m, 1, 1, 4);

	ASSERT_LE(0, m2m_open(&other, O_NONBLOCK));
	ASSERT_EQ(0, m2m_set_format(&other, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
	ASSERT_EQ(0, allocate(&other.cap, 1));
	ASSERT_EQ(2, request(&other.out, V4L2_MEMORY_DMABUF, 2));
	for (i = 0; i < 2; i++) {
		plane = &other.out.planes[i];
		plane->fd = export(&m2m->cap, i, O_RDWR | O_CLOEXEC);
		ASSERT_GE(plane->fd, 0);
	}
	ASSERT_EQ(0, m2m_stream(&other, true));
	ASSERT_EQ(0, job(&other, 0, 0, NSEC));
	EXPECT_EQ(0, compare_image(other.cap.planes[0].map, &other.cap.pix, 3));
	release(&m2m->out);
	release(&m2m->cap);
	ASSERT_EQ(0, job(&other, 1, 0, NSEC));
	EXPECT_EQ(0, compare_image(other.cap.planes[0].map, &other.cap.pix, 4));
	m2m_close(m2m);
	ASSERT_EQ(0, job(&other, 0, 0, NSEC));
	EXPECT_EQ(0, compare_image(other.cap.planes[0].map, &other.cap.pix, 3));
	m2m_close(&other);
	ASSERT_LE(0, m2m_open(m2m, O_NONBLOCK));
}

/* An export of a buffer that a job writes, while all else goes away. */
TEST_F(m2m, export_outlives)
{
	struct m2m *m2m = &self->m2m;
	size_t size = m2m->cap.pix.sizeimage;
	unsigned char *map;
	int fd;

	start_m2m(_metadata, m2m, 1);
	fd = export(&m2m->cap, 0, O_RDWR | O_CLOEXEC);
	ASSERT_GE(fd, 0);
	expect_job(_metadata, m2m, 0, 0, 5);
	release(&m2m->out);
	release(&m2m->cap);
	map = map_fd(fd, size, PROT_READ | PROT_WRITE);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, compare_image(map, &m2m->cap.pix, 5));
	close(m2m->out.fd);
	EXPECT_EQ(0, sync_fd(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW));
	EXPECT_EQ(0, compare_image(map, &m2m->cap.pix, 5));
	memset(map, 1, size);
	EXPECT_EQ(0, sync_fd(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW));
	close(fd);
	EXPECT_EQ(1, map[size - 1]);
	munmap(map, size);
	ASSERT_LE(0, m2m_open(m2m, O_NONBLOCK));
}

int main(int argc, char **argv)
{
	prepare_device(m2m_name());

	return test_harness_run(argc, argv);
}
