// SPDX-License-Identifier: GPL-2.0
/*
 * The V4L2 drivers of samples/rust/rust_vivid.rs and samples/rust/rust_vim2m.rs together, and what
 * becomes of them and their buffers when a device is unbound or a module unloaded.
 *
 * RUST_V4L2_FRAMES is how many frames go from one to the other.
 */

#define _GNU_SOURCE
#include "rust_v4l2.h"

/* The last part of where a link of the video device leads to. */
static bool read_link(const char *name, const char *link, char *base, size_t size)
{
	char path[PATH_MAX], target[PATH_MAX];

	snprintf(path, sizeof(path), CLASS "/video%d/%s", find_node(name), link);
	if (!realpath(path, target))
		return false;
	snprintf(base, size, "%s", strrchr(target, '/') + 1);

	return true;
}

/* 0, or -errno. That files were closed may still be under way elsewhere, as in udev. */
static int unload(const char *module, bool wait)
{
	int i, ret;

	for (i = 0; ; i++) {
		ret = syscall(SYS_delete_module, module, O_NONBLOCK) ? -errno : 0;
		if (ret != -EWOULDBLOCK || !wait || i == 200)
			return ret;
		sleep_ms(10);
	}
}

static bool wait_for_frames(struct worker *worker, int count)
{
	long long end = now() + TIMEOUT * NSEC;

	while (worker->frames < count && now() < end)
		sleep_ms(1);

	return worker->frames >= count;
}

/*
 * Both
 */

FIXTURE(pipeline) {
	struct queue camera;
	struct m2m m2m;
	int before;
};

FIXTURE_VARIANT(pipeline) {
	__u32 camera_memory;
	__u32 out_memory;
	unsigned int max_frames;
};

FIXTURE_VARIANT_ADD(pipeline, camera_exports) {
	.camera_memory = V4L2_MEMORY_MMAP,
	.out_memory = V4L2_MEMORY_DMABUF,
	.max_frames = 100000,
};

FIXTURE_VARIANT_ADD(pipeline, m2m_exports) {
	.camera_memory = V4L2_MEMORY_DMABUF,
	.out_memory = V4L2_MEMORY_MMAP,
	.max_frames = 100,
};

FIXTURE_VARIANT_ADD(pipeline, heap_exports) {
	.camera_memory = V4L2_MEMORY_DMABUF,
	.out_memory = V4L2_MEMORY_DMABUF,
	.max_frames = 100,
};

FIXTURE_SETUP(pipeline)
{
	const char *camera = capture_name(), *m2m = m2m_name();
	struct v4l2_pix_format *pix = &self->camera.pix;

	self->before = num_buffers();
	self->camera.type = CAPTURE;
	self->camera.fd = open_node(camera, O_NONBLOCK);
	if (self->camera.fd < 0)
		SKIP(return, "%s: %s (modprobe %s)", camera, strerror(-self->camera.fd), camera);
	if (m2m_open(&self->m2m, O_NONBLOCK) < 0)
		SKIP(return, "%s: %s (modprobe %s)", m2m, strerror(-self->m2m.out.fd), m2m);
	ASSERT_EQ(0, set_format(&self->camera, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
	ASSERT_EQ(0, set_interval(self->camera.fd, 1, 60));
	if (is_rust(camera)) {
		ASSERT_EQ(0, set_ctrl(self->camera.fd, V4L2_CID_TEST_PATTERN, 0));
		ASSERT_EQ(0, set_ctrl(self->camera.fd, V4L2_CID_HFLIP, 0));
		ASSERT_EQ(0, set_ctrl(self->camera.fd, V4L2_CID_VFLIP, 0));
	}
	ASSERT_EQ(0, m2m_set_format(&self->m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24, pix->width,
				    pix->height));
	ASSERT_EQ(pix->sizeimage, self->m2m.out.pix.sizeimage);
}

FIXTURE_TEARDOWN(pipeline)
{
	release(&self->camera);
	m2m_close(&self->m2m);
	close(self->camera.fd);
	if (!_metadata->exit_code)
		EXPECT_EQ(self->before, num_buffers_is(self->before));
}

/* Gives the device's and the mem2mem device's queues the same buffers. */
static void share(struct __test_metadata *_metadata, struct queue *camera, struct queue *out)
{
	struct queue *exporter = out, *importer = camera;
	unsigned int i;

	if (camera->memory == V4L2_MEMORY_MMAP) {
		exporter = camera;
		importer = out;
	}
	for (i = 0; i < NUM_BUFS; i++) {
		if (exporter->memory == V4L2_MEMORY_MMAP) {
			ASSERT_EQ(0, map_plane(exporter, i));
			importer->planes[i].fd = export(exporter, i, O_RDWR | O_CLOEXEC);
		} else {
			exporter->planes[i].fd = foreign_buffer(exporter->pix.sizeimage);
			ASSERT_GE(exporter->planes[i].fd, 0);
			importer->planes[i].fd = dup(exporter->planes[i].fd);
		}
		ASSERT_GE(importer->planes[i].fd, 0);
	}
}

static unsigned int num_frames(void)
{
	const char *text = getenv("RUST_V4L2_FRAMES");
	unsigned long frames = text ? strtoul(text, NULL, 0) : 300;

	return frames < 1 ? 1 : frames > 100000 ? 100000 : frames;
}

/*
 * Frames go from the camera into the mem2mem device and come out as they were: in order, none
 * twice, each whole, and with its own time. Between the devices nothing is lost. The camera drops
 * what nobody has a buffer for, which its numbers tell.
 */
TEST_F_TIMEOUT(pipeline, frames, 4 * 3600)
{
	unsigned int total = num_frames(), in = 0, out = 0, torn = 0, wrong = 0, skipped = 0;
	struct queue *camera = &self->camera, *src = &self->m2m.out, *dst = &self->m2m.cap;
	struct {
		__u32 sequence;
		long long time;
	} sent[NUM_BUFS];
	long long began, progress, last_time = -1;
	int index, counter, before = num_buffers();
	__u32 last = 0;
	struct pollfd poll_fds[2] = {
		{ .fd = camera->fd, .events = POLLIN },
		{ .fd = src->fd, .events = POLLIN | POLLOUT },
	};
	struct v4l2_buffer buf;

	if (variant->camera_memory == variant->out_memory && !have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	if (total > variant->max_frames)
		total = variant->max_frames;
	ASSERT_EQ(NUM_BUFS, request(camera, variant->camera_memory, NUM_BUFS));
	ASSERT_EQ(NUM_BUFS, request(src, variant->out_memory, NUM_BUFS));
	share(_metadata, camera, src);
	ASSERT_EQ(0, allocate(dst, NUM_BUFS));
	ASSERT_EQ(0, enqueue_all(camera));
	ASSERT_EQ(0, enqueue_all(dst));
	ASSERT_EQ(0, m2m_stream(&self->m2m, true));
	ASSERT_EQ(0, stream(camera, true));
	if (before >= 0)
		EXPECT_EQ(before + NUM_BUFS, num_buffers());

	began = now();
	progress = began;
	while (out < total) {
		ASSERT_GT(progress + TIMEOUT * NSEC, now()) {
			TH_LOG("%u frames went in, %u came out", in, out);
		}
		poll(poll_fds, 2, 1000);

		/* From the camera to the input: the index is that of the buffer for both. */
		index = dequeue_raw(camera, &buf);
		if (index >= 0) {
			ASSERT_EQ(0u, buf.flags & V4L2_BUF_FLAG_ERROR);
			ASSERT_GE(NUM_BUFS - 1u, in - out);
			/* vivid counts in jiffies, and may find the same number twice. */
			if (in && is_rust(capture_name()))
				ASSERT_LT(last, buf.sequence);
			if (in && buf.sequence > last)
				skipped += buf.sequence - last - 1;
			last = buf.sequence;
			sent[in % NUM_BUFS].sequence = buf.sequence;
			sent[in % NUM_BUFS].time = timestamp(&buf);
			in++;
			ASSERT_EQ(0, enqueue_at(src, index, timestamp(&buf)));
		} else {
			ASSERT_EQ(-EAGAIN, index);
		}

		/* What came out, before its buffer goes back to the camera. */
		index = dequeue_raw(dst, &buf);
		if (index >= 0) {
			ASSERT_EQ(0u, buf.flags & V4L2_BUF_FLAG_ERROR);
			ASSERT_LT(out, in);
			ASSERT_EQ(dst->pix.sizeimage, buf.bytesused);
			EXPECT_EQ(sent[out % NUM_BUFS].time, timestamp(&buf));
			EXPECT_LT(last_time, timestamp(&buf));
			last_time = timestamp(&buf);
			EXPECT_EQ(out, buf.sequence);
			if (is_rust(capture_name())) {
				counter = counter_of(dst->planes[index].map, &dst->pix);
				torn += counter < 0;
				wrong += counter >= 0 &&
					 counter != (int)(sent[out % NUM_BUFS].sequence & 0xffff);
			}
			out++;
			progress = now();
			ASSERT_EQ(0, enqueue(dst, index));
		} else {
			ASSERT_EQ(-EAGAIN, index);
		}

		/* And back to the camera. */
		index = dequeue_raw(src, &buf);
		if (index != -EAGAIN) {
			ASSERT_GE(index, 0);
			ASSERT_EQ(0, enqueue(camera, index));
		}
	}
	TH_LOG("%u frames in %lld ms, the camera dropped %u", out, (now() - began) / 1000000,
	       skipped);
	EXPECT_EQ(0u, torn);
	EXPECT_EQ(0u, wrong);
	/* Else this is not what was to be tested. */
	EXPECT_LE(skipped, total);

	release(camera);
	release(src);
	release(dst);
	EXPECT_EQ(before, num_buffers_is(before));
}

/* The camera writes what the other device reads. None of them minds. */
TEST_F(pipeline, buffer_in_two_queues)
{
	struct queue *camera = &self->camera, *src = &self->m2m.out, *dst = &self->m2m.cap;
	struct v4l2_buffer buf, first;
	unsigned char *map;
	int i, fd;

	if (variant->camera_memory == variant->out_memory && !have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	ASSERT_EQ(NUM_BUFS, request(camera, variant->camera_memory, NUM_BUFS));
	ASSERT_EQ(NUM_BUFS, request(src, variant->out_memory, NUM_BUFS));
	share(_metadata, camera, src);
	ASSERT_EQ(0, allocate(dst, NUM_BUFS));
	ASSERT_EQ(0, stream(camera, true));
	ASSERT_EQ(0, m2m_stream(&self->m2m, true));
	for (i = 0; i < 20; i++) {
		/* In either order. */
		if (i % 2)
			ASSERT_EQ(0, enqueue(camera, 0));
		ASSERT_EQ(0, enqueue(src, 0));
		if (!(i % 2))
			ASSERT_EQ(0, enqueue(camera, 0));
		ASSERT_EQ(0, enqueue(dst, 0));
		ASSERT_EQ(0, dequeue(camera, &first));
		ASSERT_EQ(0, dequeue(dst, &buf));
		ASSERT_EQ(0, dequeue(src, &buf));
	}
	/* Now that it is in none, it has the last frame, and the next job makes that of it. */
	ASSERT_EQ(0, job(&self->m2m, 0, 0, 0));
	EXPECT_FRAME(camera, &first, dst->planes[0].map);
	fd = camera->planes[0].fd >= 0 ? camera->planes[0].fd : src->planes[0].fd;
	map = map_fd(fd, camera->pix.sizeimage, PROT_READ);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, memcmp(map, dst->planes[0].map, camera->pix.sizeimage));
	munmap(map, camera->pix.sizeimage);
}

/* A buffer that waits in the one queue, while that which exported it is gone. */
TEST_F(pipeline, exporter_goes_first)
{
	struct queue *camera = &self->camera, *src = &self->m2m.out, *dst = &self->m2m.cap;
	struct v4l2_buffer buf;
	unsigned char *copy;

	if (variant->camera_memory != V4L2_MEMORY_MMAP)
		SKIP(return, "the camera exports nothing");
	copy = malloc(camera->pix.sizeimage);
	ASSERT_NE(NULL, copy);
	ASSERT_EQ(NUM_BUFS, request(camera, variant->camera_memory, NUM_BUFS));
	ASSERT_EQ(NUM_BUFS, request(src, variant->out_memory, NUM_BUFS));
	share(_metadata, camera, src);
	ASSERT_EQ(0, allocate(dst, 1));
	ASSERT_EQ(0, enqueue(camera, 0));
	ASSERT_EQ(0, stream(camera, true));
	ASSERT_EQ(0, dequeue(camera, &buf));
	memcpy(copy, camera->planes[0].map, camera->pix.sizeimage);
	ASSERT_EQ(0, enqueue(src, 0));
	release(camera);
	close(camera->fd);
	camera->fd = -1;
	close(src->planes[0].fd);
	src->planes[0].fd = -1;

	ASSERT_EQ(0, enqueue(dst, 0));
	ASSERT_EQ(0, m2m_stream(&self->m2m, true));
	ASSERT_EQ(0, dequeue(dst, &buf));
	EXPECT_EQ(0, memcmp(copy, dst->planes[0].map, camera->pix.sizeimage));
	free(copy);
}

/*
 * Devices that go away
 */

enum buffers {
	MMAP,
	EXPORTED,
	IMPORTED,
};

FIXTURE(unbind) {
	struct queue q;		/* of the camera */
	struct m2m m2m;
	char driver[64];
	char device[64];
	int before;
	bool unbound;
};

FIXTURE_VARIANT(unbind) {
	bool m2m;
	enum buffers kind;
	bool busy;
};

FIXTURE_VARIANT_ADD(unbind, capture_mmap) { .kind = MMAP, .busy = true };
FIXTURE_VARIANT_ADD(unbind, capture_exported) { .kind = EXPORTED, .busy = true };
FIXTURE_VARIANT_ADD(unbind, capture_imported) { .kind = IMPORTED, .busy = true };
FIXTURE_VARIANT_ADD(unbind, capture_blocked) { .kind = MMAP };
FIXTURE_VARIANT_ADD(unbind, m2m_mmap) { .m2m = true, .kind = MMAP, .busy = true };
FIXTURE_VARIANT_ADD(unbind, m2m_exported) { .m2m = true, .kind = EXPORTED, .busy = true };
FIXTURE_VARIANT_ADD(unbind, m2m_imported) { .m2m = true, .kind = IMPORTED, .busy = true };
FIXTURE_VARIANT_ADD(unbind, m2m_blocked) { .m2m = true, .kind = MMAP };

FIXTURE_SETUP(unbind)
{
	const char *name = variant->m2m ? m2m_name() : capture_name();
	char path[PATH_MAX];
	int fd;

	self->before = num_buffers();
	if (variant->kind == IMPORTED && !have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	if (variant->m2m && !is_rust(name))
		SKIP(return, "%s wakes nobody up when it is unbound", name);
	/* Files that block. */
	fd = open_node(name, 0);
	if (fd < 0)
		SKIP(return, "%s: %s (modprobe %s)", name, strerror(-fd), name);
	close(fd);
	ASSERT_TRUE(read_link(name, "device", self->device, sizeof(self->device)));
	ASSERT_TRUE(read_link(name, "device/driver", self->driver, sizeof(self->driver)));
	if (is_rust(name)) {
		ASSERT_STREQ(name, self->device);
		ASSERT_STREQ(name, self->driver);
	}
	snprintf(path, sizeof(path), "/sys/bus/platform/drivers/%s/unbind", self->driver);
	if (access(path, W_OK))
		SKIP(return, "unbinding %s: %s (needs root)", self->device, strerror(errno));

	if (variant->m2m) {
		ASSERT_LE(0, m2m_open(&self->m2m, 0));
		ASSERT_EQ(0, m2m_set_format(&self->m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24,
					    WIDTH, HEIGHT));
	} else {
		self->q.type = CAPTURE;
		self->q.fd = open_node(name, 0);
		ASSERT_GE(self->q.fd, 0);
		ASSERT_EQ(0, set_format(&self->q, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
		ASSERT_EQ(0, set_interval(self->q.fd, 1, 60));
	}
}

FIXTURE_TEARDOWN(unbind)
{
	/* The test has freed what there was. */
	if (self->unbound)
		set_bound(self->driver, self->device, true);
	if (!_metadata->exit_code)
		EXPECT_EQ(self->before, num_buffers_is(self->before));
}

/* Sets up a queue for the test below. */
static void prepare(struct __test_metadata *_metadata, struct queue *q, enum buffers kind, int *fd)
{
	unsigned int i;

	if (kind == IMPORTED) {
		ASSERT_EQ(0, import_foreign(q, NUM_BUFS));
		return;
	}
	ASSERT_EQ(0, allocate(q, NUM_BUFS));
	for (i = 0; kind == EXPORTED && i < NUM_BUFS; i++) {
		fd[i] = export(q, i, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd[i], 0);
	}
}

/* What is left is what was there; then it is given up. */
static void expect_left(struct __test_metadata *_metadata, struct queue *q, enum buffers kind,
			const int *fd)
{
	size_t size = q->pix.sizeimage;
	struct v4l2_buffer buf;
	unsigned char *map;
	unsigned int i;

	EXPECT_EQ(-ENODEV, enqueue(q, 0));
	EXPECT_EQ(-ENODEV, dequeue_raw(q, &buf));
	EXPECT_EQ(-ENODEV, stream(q, true));
	EXPECT_EQ(-ENODEV, stream(q, false));
	EXPECT_EQ(-ENODEV, export(q, 0, O_RDWR));
	for (i = 0; i < NUM_BUFS; i++) {
		/* It is memory, and nobody else writes to it now. */
		memset(q->planes[i].map, i + 1, size);
		if (kind == MMAP)
			continue;
		map = map_fd(kind == EXPORTED ? fd[i] : q->planes[i].fd, size,
			     PROT_READ | PROT_WRITE);
		ASSERT_NE(MAP_FAILED, map);
		EXPECT_EQ(0, memcmp(map, q->planes[i].map, size));
		munmap(map, size);
	}
	sleep_ms(50);
	for (i = 0; i < NUM_BUFS; i++) {
		EXPECT_EQ(i + 1, q->planes[i].map[0]);
		EXPECT_EQ(0, memcmp(q->planes[i].map, q->planes[i].map + 1, size - 1));
		drop_plane(&q->planes[i]);
	}
	q->num = 0;
}

/* The file is closed as well, the device is there again. */
static void expect_exports(struct __test_metadata *_metadata, const struct queue *q, const int *fd)
{
	size_t size = q->pix.sizeimage;
	unsigned char *map;
	unsigned int i;

	for (i = 0; i < NUM_BUFS; i++) {
		EXPECT_EQ(0, sync_fd(fd[i], DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW));
		map = map_fd(fd[i], size, PROT_READ | PROT_WRITE);
		ASSERT_NE(MAP_FAILED, map);
		EXPECT_EQ(i + 1, map[0]);
		EXPECT_EQ(0, memcmp(map, map + 1, size - 1));
		munmap(map, size);
		EXPECT_EQ(0, sync_fd(fd[i], DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW));
		close(fd[i]);
	}
}

/* The video device as it is new, works. */
static void expect_works(struct __test_metadata *_metadata, bool is_m2m)
{
	const char *name = is_m2m ? m2m_name() : capture_name();
	struct queue q = { .type = CAPTURE };
	struct m2m m2m;
	int i;

	/* Whoever makes the file in /dev needs a while. */
	for (i = 0; i < 200 && (q.fd = open_node(name, O_NONBLOCK)) < 0; i++)
		sleep_ms(10);
	ASSERT_GE(q.fd, 0);
	if (is_m2m) {
		close(q.fd);
		ASSERT_LE(0, m2m_open(&m2m, O_NONBLOCK));
		ASSERT_EQ(0, m2m_set_format(&m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24, WIDTH,
					    HEIGHT));
		start_m2m(_metadata, &m2m, 1);
		expect_job(_metadata, &m2m, 0, 0, 1);
		m2m_close(&m2m);
	} else {
		ASSERT_EQ(0, set_format(&q, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
		ASSERT_EQ(0, set_interval(q.fd, 1, 60));
		start_capture(_metadata, &q, 2);
		expect_frames(_metadata, &q, 4);
		release(&q);
		close(q.fd);
	}
}

/* With tasks that wait for frames, with or without any on the way. */
TEST_F_TIMEOUT(unbind, while_streaming, 60)
{
	struct queue *q = variant->m2m ? &self->m2m.cap : &self->q, *out = &self->m2m.out;
	struct worker worker = { .q = q }, feeder = { .q = out };
	int i, fd[NUM_BUFS], out_fd[NUM_BUFS];
	struct pollfd poll_fd = { .fd = q->fd, .events = POLLIN };
	struct v4l2_capability cap;
	char byte;

	prepare(_metadata, q, variant->kind, fd);
	if (variant->m2m) {
		prepare(_metadata, out, variant->kind, out_fd);
		ASSERT_EQ(0, stream(out, true));
		if (variant->busy)
			ASSERT_EQ(0, enqueue_all(out));
		/* Without, there are buffers for jobs, but nothing to do. */
		ASSERT_EQ(0, enqueue_all(q));
	} else if (variant->busy) {
		ASSERT_EQ(0, enqueue_all(q));
	}
	ASSERT_EQ(0, stream(q, true));
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, cycle, &worker));
	if (variant->m2m)
		ASSERT_EQ(0, pthread_create(&feeder.thread, NULL, cycle, &feeder));
	if (!variant->busy)
		sleep_ms(100);
	else
		ASSERT_TRUE(wait_for_frames(&worker, 5));

	self->unbound = set_bound(self->driver, self->device, false);
	ASSERT_TRUE(self->unbound);
	/* Nobody waits any more. */
	ASSERT_TRUE(join(&worker));
	EXPECT_GT(0, worker.ret);
	if (variant->m2m) {
		ASSERT_TRUE(join(&feeder));
		EXPECT_GT(0, feeder.ret);
	}
	TH_LOG("after %d frames: %s", worker.frames, strerror(-worker.ret));

	EXPECT_EQ(-1, find_node(variant->m2m ? m2m_name() : capture_name()));
	EXPECT_EQ(-ENODEV, do_ioctl(q->fd, VIDIOC_QUERYCAP, &cap));
	EXPECT_EQ(1, poll(&poll_fd, 1, 0));
	EXPECT_EQ(POLLERR | POLLHUP, poll_fd.revents & (POLLERR | POLLHUP));
	if (!variant->m2m) {
		EXPECT_EQ(-1, read(q->fd, &byte, 1));
		EXPECT_EQ(ENODEV, errno);
	}

	/* Once after the file was closed, once before. */
	if (variant->kind == EXPORTED) {
		ASSERT_TRUE(set_bound(self->driver, self->device, true));
		self->unbound = false;
		expect_works(_metadata, variant->m2m);
	}
	expect_left(_metadata, q, variant->kind, fd);
	if (variant->m2m)
		expect_left(_metadata, out, variant->kind, out_fd);
	ASSERT_EQ(0, close(q->fd));
	if (variant->kind == EXPORTED) {
		expect_exports(_metadata, q, fd);
		if (variant->m2m)
			expect_exports(_metadata, out, out_fd);
	}
	if (self->unbound) {
		ASSERT_TRUE(set_bound(self->driver, self->device, true));
		self->unbound = false;
		expect_works(_metadata, variant->m2m);
	}
	for (i = 0; i < 3; i++) {
		self->unbound = set_bound(self->driver, self->device, false);
		ASSERT_TRUE(self->unbound);
		ASSERT_TRUE(set_bound(self->driver, self->device, true));
		self->unbound = false;
	}
	expect_works(_metadata, variant->m2m);
}

FIXTURE(unload) {
	struct queue q;		/* whose buffers are exported */
	struct m2m m2m;
	char module[64];
	int before;
	bool unloaded;
};

FIXTURE_VARIANT(unload) {
	bool m2m;
};

FIXTURE_VARIANT_ADD(unload, capture) { .m2m = false };
FIXTURE_VARIANT_ADD(unload, m2m) { .m2m = true };

FIXTURE_SETUP(unload)
{
	const char *name = variant->m2m ? m2m_name() : capture_name();
	int fd;

	self->before = num_buffers();
	fd = open_node(name, O_NONBLOCK);
	if (fd < 0)
		SKIP(return, "%s: %s (modprobe %s)", name, strerror(-fd), name);
	close(fd);
	if (geteuid())
		SKIP(return, "needs root");
	if (!read_link(name, "device/driver/module", self->module, sizeof(self->module)))
		SKIP(return, "%s is built in", name);
	if (is_rust(name))
		ASSERT_STREQ(name, self->module);
	if (!run("modprobe", "-n", self->module))
		SKIP(return, "modprobe does not know %s", self->module);
}

FIXTURE_TEARDOWN(unload)
{
	if (self->unloaded)
		run("modprobe", "-q", self->module);
	if (!_metadata->exit_code)
		EXPECT_EQ(self->before, num_buffers_is(self->before));
}

/* A module is held by its files and what they have mapped, not by buffers that it exported. */
TEST_F_TIMEOUT(unload, exported_buffers, 60)
{
	struct queue capture = { .type = CAPTURE }, *q = &capture;
	struct v4l2_buffer buf;
	unsigned char *map[2], *copy, *mapping;
	size_t size;
	int i, fd[2];

	if (variant->m2m) {
		ASSERT_LE(0, m2m_open(&self->m2m, O_NONBLOCK));
		ASSERT_EQ(0, m2m_set_format(&self->m2m, V4L2_PIX_FMT_RGB24, V4L2_PIX_FMT_RGB24,
					    WIDTH, HEIGHT));
		q = &self->m2m.cap;
		start_m2m(_metadata, &self->m2m, 2);
		expect_job(_metadata, &self->m2m, 0, 0, 6);
		expect_job(_metadata, &self->m2m, 1, 1, 7);
	} else {
		q->fd = open_node(capture_name(), O_NONBLOCK);
		ASSERT_EQ(0, set_format(q, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
		ASSERT_EQ(0, set_interval(q->fd, 1, 60));
		start_capture(_metadata, q, 2);
		ASSERT_LE(0, dequeue(q, &buf));
		ASSERT_LE(0, dequeue(q, &buf));
	}
	size = q->pix.sizeimage;
	copy = malloc(2 * size);
	ASSERT_NE(NULL, copy);
	for (i = 0; i < 2; i++) {
		fd[i] = export(q, i, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd[i], 0);
		memcpy(copy + i * size, q->planes[i].map, size);
	}
	map[0] = map_fd(fd[0], size, PROT_READ | PROT_WRITE);
	ASSERT_NE(MAP_FAILED, map[0]);

	/* While streaming, and with a mapping of the file. */
	EXPECT_EQ(-EWOULDBLOCK, unload(self->module, false));
	mapping = q->planes[0].map;
	q->planes[0].map = MAP_FAILED;
	if (variant->m2m) {
		m2m_close(&self->m2m);
	} else {
		release(q);
		close(q->fd);
	}
	EXPECT_EQ(-EWOULDBLOCK, unload(self->module, false));
	EXPECT_EQ(0, memcmp(copy, mapping, size));
	munmap(mapping, size);

	ASSERT_EQ(0, unload(self->module, true));
	self->unloaded = true;
	EXPECT_EQ(-1, find_node(variant->m2m ? m2m_name() : capture_name()));
	/* All of it is there. */
	map[1] = map_fd(fd[1], size, PROT_READ | PROT_WRITE);
	ASSERT_NE(MAP_FAILED, map[1]);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, sync_fd(fd[i], DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW));
		EXPECT_EQ(0, memcmp(copy + i * size, map[i], size));
		memset(map[i], 0x11, size);
		EXPECT_EQ(0, sync_fd(fd[i], DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW));
	}
	if (self->before >= 0)
		EXPECT_EQ(self->before + 2, num_buffers());

	/* One is freed now, the other one can be used by the next of its kind. */
	close(fd[1]);
	munmap(map[1], size);
	ASSERT_TRUE(run("modprobe", "-q", self->module));
	self->unloaded = false;
	expect_works(_metadata, variant->m2m);
	if (!variant->m2m) {
		q->fd = open_node(capture_name(), O_NONBLOCK);
		ASSERT_GE(q->fd, 0);
		ASSERT_EQ(0, set_format(q, V4L2_PIX_FMT_RGB24, WIDTH, HEIGHT));
		ASSERT_LT(0, request(q, V4L2_MEMORY_DMABUF, 1));
		q->planes[0].fd = fd[0];
		q->planes[0].map = map[0];
		q->planes[0].size = size;
		ASSERT_EQ(0, enqueue(q, 0));
		ASSERT_EQ(0, stream(q, true));
		expect_frames(_metadata, q, 2);
		release(q);
		close(q->fd);
	} else {
		close(fd[0]);
		munmap(map[0], size);
	}
	free(copy);
}

int main(int argc, char **argv)
{
	prepare_device(capture_name());
	prepare_device(m2m_name());

	return test_harness_run(argc, argv);
}
