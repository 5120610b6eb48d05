// SPDX-License-Identifier: GPL-2.0
/*
 * What videobuf2 asks of the memory of buffers, of either kind, and when there is none yet: of the
 * V4L2 drivers of samples/rust/rust_vivid.rs and samples/rust/rust_vim2m.rs, or of those in C.
 */

#define _GNU_SOURCE
#include <sys/sysinfo.h>
#include "rust_v4l2.h"

#define MAPPED		V4L2_BUF_FLAG_MAPPED
#define QUEUED		V4L2_BUF_FLAG_QUEUED
#define PREPARED	V4L2_BUF_FLAG_PREPARED

FIXTURE(memory) {
	struct queue q;
	off_t offset;		/* where the first buffer of the queue's own is mapped */
	int before;
};

FIXTURE_VARIANT(memory) {
	bool m2m;
	__u32 type;
};

FIXTURE_VARIANT_ADD(memory, capture) { .type = CAPTURE };
FIXTURE_VARIANT_ADD(memory, m2m_output) { .m2m = true, .type = OUTPUT };
FIXTURE_VARIANT_ADD(memory, m2m_capture) { .m2m = true, .type = CAPTURE };

FIXTURE_SETUP(memory)
{
	const char *name = variant->m2m ? m2m_name() : capture_name();
	struct v4l2_buffer buf = { .type = variant->type };
	struct queue *q = &self->q;

	self->before = num_buffers();
	q->type = variant->type;
	q->fd = open_node(name, O_NONBLOCK);
	if (q->fd < 0)
		SKIP(return, "%s: %s (modprobe %s)", name, strerror(-q->fd), name);
	ASSERT_EQ(0, set_format(q, V4L2_PIX_FMT_RGB24, 320, 240));
	ASSERT_LT(2 * getpagesize(), (int)q->pix.sizeimage);
	ASSERT_LT(0, request(q, V4L2_MEMORY_MMAP, 1));
	ASSERT_EQ(0, do_ioctl(q->fd, VIDIOC_QUERYBUF, &buf));
	self->offset = buf.m.offset;
	ASSERT_EQ(0, request(q, V4L2_MEMORY_MMAP, 0));
}

FIXTURE_TEARDOWN(memory)
{
	release(&self->q);
	close(self->q.fd);
	if (!_metadata->exit_code)
		EXPECT_EQ(self->before, num_buffers_is(self->before));
}

/*
 * QUERYBUF, PREPARE_BUF or QBUF: the flags, or -errno. The latter use all of a buffer, but do not
 * say so: an import that fails leaves a length of zero to an OUTPUT buffer, and that is checked.
 */
static int call(const struct queue *q, unsigned long cmd, unsigned int index, int fd)
{
	struct v4l2_buffer buf = {
		.index = index,
		.type = q->type,
		.memory = q->memory,
		.field = V4L2_FIELD_NONE,
	};
	int ret;

	if (q->memory == V4L2_MEMORY_DMABUF) {
		buf.m.fd = fd;
		buf.length = q->pix.sizeimage;
	}
	ret = do_ioctl(q->fd, cmd, &buf);

	return ret ? ret : (int)(buf.flags & (MAPPED | QUEUED | PREPARED));
}

static int query(const struct queue *q, unsigned int index)
{
	return call(q, VIDIOC_QUERYBUF, index, -1);
}

/* Nobody has mapped a buffer of the device where it has none. */
TEST_F_TIMEOUT(memory, imported_is_never_mapped, 60)
{
	struct queue *q = &self->q;
	unsigned int round, i;

	if (!have_foreign_buffers())
		SKIP(return, NO_FOREIGN_BUFFERS);
	for (round = 0; round < 12; round++) {
		ASSERT_EQ(MAX_BUFS, request(q, V4L2_MEMORY_DMABUF, MAX_BUFS));
		for (i = 0; i < q->num; i++) {
			q->planes[i].fd = foreign_buffer(q->pix.sizeimage);
			ASSERT_GE(q->planes[i].fd, 0);
			EXPECT_EQ(0, query(q, i));
			EXPECT_EQ(QUEUED, call(q, VIDIOC_QBUF, i, q->planes[i].fd));
			EXPECT_EQ(QUEUED, query(q, i));
		}
		/* They are still attached. */
		ASSERT_EQ(0, stream(q, false));
		for (i = 0; i < q->num; i++)
			EXPECT_EQ(0, query(q, i));
		release(q);
	}
}

TEST_F(memory, own_is_mapped_while_it_is)
{
	struct queue *q = &self->q;
	struct plane *plane = &q->planes[0];
	size_t page = getpagesize();
	int fds[2], status;
	char byte;
	pid_t pid;

	ASSERT_LT(0, request(q, V4L2_MEMORY_MMAP, 1));
	EXPECT_EQ(0, query(q, 0));
	ASSERT_EQ(0, map_plane(q, 0));
	EXPECT_EQ(MAPPED, query(q, 0));

	/* A child has a mapping of its own, until it is told to go. */
	plane->map[0] = 0x5a;
	ASSERT_EQ(0, pipe(fds));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(fds[1]);
		_exit(read(fds[0], &byte, 1) || plane->map[0] != 0x5a);
	}
	drop_plane(plane);
	EXPECT_EQ(MAPPED, query(q, 0));
	close(fds[1]);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, query(q, 0));

	/* A mapping that loses its middle is two. */
	ASSERT_EQ(0, map_plane(q, 0));
	ASSERT_EQ(0, munmap(plane->map + page, page));
	EXPECT_EQ(MAPPED, query(q, 0));
	ASSERT_EQ(0, munmap(plane->map, page));
	EXPECT_EQ(MAPPED, query(q, 0));
	plane->map[plane->size - 1] = 1;
	ASSERT_EQ(0, munmap(plane->map + 2 * page, plane->size - 2 * page));
	EXPECT_EQ(0, query(q, 0));
	plane->map = MAP_FAILED;
}

/* Whether smaps shows the flags of what is neither expanded nor dumped, for what begins there. */
static bool is_fixed(const void *map)
{
	bool here = false, found = false;
	unsigned long start, end;
	char line[256];
	FILE *f = fopen("/proc/self/smaps", "re");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == (unsigned long)map;
		else if (here && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, " de") && strstr(line, " dd");
	}
	if (f)
		fclose(f);

	return found;
}

/* A mapping is made for a range that was checked: it may move, but not grow, or become two. */
static void remap(struct __test_metadata *_metadata, struct queue *q, bool exported)
{
	size_t len, page = getpagesize();
	struct plane *plane = &q->planes[0];
	unsigned char *map, *spot;
	int fd = -1;

	/* Two: that which is moved, and in the queue one to see it by. */
	ASSERT_LT(0, request(q, V4L2_MEMORY_MMAP, 1));
	ASSERT_EQ(0, map_plane(q, 0));
	len = (plane->size + page - 1) / page * page;
	map = plane->map;
	if (exported) {
		fd = export(q, 0, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd, 0);
		map = map_fd(fd, len, PROT_READ | PROT_WRITE);
		ASSERT_NE(MAP_FAILED, map);
	} else {
		ASSERT_EQ(0, map_plane(q, 0));
	}
	EXPECT_TRUE(is_fixed(map));

	/* To where there is something on either side. */
	spot = mmap(NULL, 3 * len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, spot);
	map[0] = 0x5a;
	ASSERT_EQ(spot + len, mremap(map, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, spot + len));
	map = spot + len;
	plane->map[len - 1] = 0xa5;
	EXPECT_EQ(0xa5, map[len - 1]);

	ASSERT_EQ(MAP_FAILED, mremap(map, len, 2 * len, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	/* A size of zero asks for a second mapping. */
	ASSERT_EQ(MAP_FAILED, mremap(map, 0, len, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	ASSERT_EQ(MAP_FAILED, mremap(map, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP));
	EXPECT_EQ(EINVAL, errno);
	drop_plane(plane);
	EXPECT_EQ(0x5a, map[0]);
	EXPECT_EQ(0xa5, map[len - 1]);
	EXPECT_EQ(MAPPED, query(q, 0));
	ASSERT_EQ(0, munmap(spot, 3 * len));
	if (exported)
		close(fd);
	EXPECT_EQ(0, query(q, 0));
}

TEST_F(memory, mremap)
{
	remap(_metadata, &self->q, false);
}

TEST_F(memory, mremap_exported)
{
	remap(_metadata, &self->q, true);
}

/* Whether something can be mapped and written: 0, or -errno. */
static int write_page(int fd, off_t offset)
{
	size_t page = getpagesize();
	unsigned char *map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

	if (map == MAP_FAILED)
		return -errno;
	map[0] = 1;
	map[page - 1] = 2;

	return munmap(map, page);
}

static void *free_and_make(void *arg)
{
	struct worker *worker = arg;
	struct queue q = *worker->q;
	int i, foreign = foreign_buffer(q.pix.sizeimage);

	for (i = 0; !*worker->stop; i++) {
		/* Now and then of the other kind, with one that is attached; or none. */
		if (i % 4 == 3 && request(&q, V4L2_MEMORY_DMABUF, 1) > 0)
			call(&q, VIDIOC_QBUF, 0, foreign);
		else if (request(&q, V4L2_MEMORY_MMAP, 1 + i % 3) > 0)
			worker->frames++;
		if (i % 5 == 4)
			request(&q, q.memory, 0);
	}
	close(foreign);

	return NULL;
}

static void *map_and_write(void *arg)
{
	struct worker *worker = arg;
	const struct queue *q = worker->q;
	struct v4l2_buffer buf;
	int i, j;

	for (i = 0; !*worker->stop; i++) {
		buf = (struct v4l2_buffer){ .index = i % 3, .type = q->type };
		if (do_ioctl(q->fd, VIDIOC_QUERYBUF, &buf) || buf.memory != V4L2_MEMORY_MMAP)
			continue;
		/* Soon it is where a buffer is whose memory is not there yet. */
		for (j = 0; j < 4; j++)
			worker->frames += !write_page(q->fd, buf.m.offset);
	}

	return NULL;
}

static void *export_and_write(void *arg)
{
	struct worker *worker = arg;
	int fd;

	while (!*worker->stop && !worker->ret) {
		fd = export(worker->q, 0, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		worker->ret = write_page(fd, 0);
		worker->frames++;
		close(fd);
	}

	return NULL;
}

/* Buffers are mapped and exported while others free them and make new ones. */
TEST_F_TIMEOUT(memory, mmap_race, 60)
{
	static void *(*const functions[])(void *) = {
		free_and_make, map_and_write, map_and_write, export_and_write,
	};
	struct worker workers[ARRAY_SIZE(functions)] = { 0 };
	struct queue *q = &self->q;
	atomic_int stop = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(functions); i++) {
		workers[i].q = q;
		workers[i].stop = &stop;
		ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, functions[i], &workers[i]));
	}
	sleep_ms(3000);
	stop = 1;
	for (i = 0; i < ARRAY_SIZE(functions); i++) {
		ASSERT_TRUE(join(&workers[i]));
		EXPECT_LT(5, atomic_load(&workers[i].frames));
		EXPECT_EQ(0, workers[i].ret);
	}
	/* It can go on. */
	ASSERT_EQ(0, allocate(q, 2));
	ASSERT_EQ(2u, q->num);
	memset(q->planes[1].map, 1, q->planes[1].size);
}

/* A buffer that is larger than all memory, which fails at once. */
static void *fail_to_make(void *arg)
{
	struct worker *worker = arg;
	struct v4l2_create_buffers create;

	while (!*worker->stop && !worker->ret) {
		create = (struct v4l2_create_buffers){
			.count = 1,
			.memory = V4L2_MEMORY_MMAP,
			.format.type = worker->q->type,
			.format.fmt.pix = worker->q->pix,
		};
		create.format.fmt.pix.sizeimage = UINT_MAX - 2 * getpagesize() + 1;
		if (do_ioctl(worker->q->fd, VIDIOC_CREATE_BUFS, &create) != -ENOMEM)
			worker->ret = -EBADE;
		worker->frames++;
	}

	return NULL;
}

static off_t first_offset;

static void *map_first(void *arg)
{
	struct worker *worker = arg;

	while (!*worker->stop) {
		if (write_page(worker->q->fd, first_offset) != -EINVAL)
			worker->ret = -EBADE;
		worker->frames++;
	}

	return NULL;
}

/* A buffer that is looked for by mmap() while it is made does not come to be. */
TEST_F_TIMEOUT(memory, mmap_races_with_failure, 60)
{
	struct queue *q = &self->q;
	struct worker workers[3] = { 0 };
	atomic_int stop = 0;
	struct sysinfo info;
	unsigned int i;

	ASSERT_EQ(0, sysinfo(&info));
	if ((unsigned long long)info.totalram * info.mem_unit > UINT_MAX - 2 * getpagesize())
		SKIP(return, "needs less than 4 GiB of memory");
	first_offset = self->offset;
	for (i = 0; i < ARRAY_SIZE(workers); i++) {
		workers[i].q = q;
		workers[i].stop = &stop;
		ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL,
					    i ? map_first : fail_to_make, &workers[i]));
	}
	sleep_ms(5000);
	stop = 1;
	for (i = 0; i < ARRAY_SIZE(workers); i++) {
		ASSERT_TRUE(join(&workers[i]));
		EXPECT_LT(100, atomic_load(&workers[i].frames));
		EXPECT_EQ(0, workers[i].ret);
	}
	ASSERT_EQ(0, allocate(q, 2));
}

/* The first buffer is not one of the queue's own, which could be exported or mapped. */
static void expect_not_own(struct __test_metadata *_metadata, const struct queue *q, off_t offset,
			   int flags)
{
	EXPECT_EQ(flags, query(q, 0));
	EXPECT_EQ(-EINVAL, export(q, 0, O_RDWR));
	EXPECT_EQ(-EINVAL, write_page(q->fd, offset));
}

/* Buffers to import that have no memory yet, or none any more. */
TEST_F(memory, import_fails)
{
	struct queue *q = &self->q;
	int i, fd[2] = { foreign_buffer(q->pix.sizeimage), foreign_buffer(q->pix.sizeimage) };

	if (fd[0] < 0 || fd[1] < 0)
		SKIP(return, NO_FOREIGN_BUFFERS);
	expect_not_own(_metadata, q, self->offset, -EINVAL);
	ASSERT_LT(0, request(q, V4L2_MEMORY_DMABUF, 2));
	ASSERT_EQ(0, stream(q, true));
	expect_not_own(_metadata, q, self->offset, 0);
	ASSERT_EQ(0, stream(q, false));
	q->memory = V4L2_MEMORY_MMAP;
	EXPECT_EQ(-EINVAL, call(q, VIDIOC_PREPARE_BUF, 0, -1));
	EXPECT_EQ(-EINVAL, call(q, VIDIOC_QBUF, 0, -1));
	q->memory = V4L2_MEMORY_DMABUF;
	for (i = 0; i < 6; i++) {
		/* This detaches what there was. */
		EXPECT_EQ(-EINVAL, call(q, i % 2 ? VIDIOC_QBUF : VIDIOC_PREPARE_BUF, 0, q->fd));
		expect_not_own(_metadata, q, self->offset, 0);
		EXPECT_EQ(PREPARED, call(q, VIDIOC_PREPARE_BUF, 0, fd[i % 2]));
		expect_not_own(_metadata, q, self->offset, PREPARED);
		/* What is prepared is queued, whatever it is said to be now. */
		EXPECT_EQ(-EINVAL, call(q, VIDIOC_PREPARE_BUF, 0, fd[i % 2]));
		EXPECT_EQ(QUEUED, call(q, VIDIOC_QBUF, 0, -1));
		expect_not_own(_metadata, q, self->offset, QUEUED);
		ASSERT_EQ(0, stream(q, false));
		expect_not_own(_metadata, q, self->offset, 0);
	}
	/* One is attached and prepared when the file is closed. */
	EXPECT_EQ(PREPARED, call(q, VIDIOC_PREPARE_BUF, 1, fd[1]));
	q->num = 0;
	close(fd[0]);
	close(fd[1]);
}

/*
 * Two buffers in place of those there are, by REQBUFS, or REMOVE_BUFS and CREATE_BUFS. These take
 * what is prepared as well; videobuf2 does not call finish then. 0, or an error.
 */
static int replace(struct queue *q, __u32 memory, bool removing)
{
	struct v4l2_create_buffers create = { .count = 2, .memory = memory };
	struct v4l2_remove_buffers remove = { .count = q->num, .type = q->type };
	int ret;

	if (!removing)
		return request(q, memory, 2) - 2;
	create.format.type = q->type;
	ret = do_ioctl(q->fd, VIDIOC_REMOVE_BUFS, &remove);
	ret = ret ?: do_ioctl(q->fd, VIDIOC_G_FMT, &create.format);
	ret = ret ?: do_ioctl(q->fd, VIDIOC_CREATE_BUFS, &create);
	q->memory = memory;

	return ret ?: (int)create.index;
}

/* A buffer makes way for one of the other kind, while it is prepared, and used elsewhere. */
TEST_F(memory, other_kind)
{
	struct queue *q = &self->q;
	bool removing = false;
	unsigned char *map;
	size_t size;
	int i, fd;

	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, replace(q, V4L2_MEMORY_MMAP, removing));
		ASSERT_EQ(0, map_plane(q, 0));
		map = q->planes[0].map;
		size = q->planes[0].size;
		q->planes[0].map = MAP_FAILED;
		/* There is nothing in it of the one before. */
		EXPECT_EQ(0, map[0]);
		map[0] = 0x11;
		fd = export(q, 0, O_RDWR | O_CLOEXEC);
		ASSERT_GE(fd, 0);
		EXPECT_EQ(MAPPED | PREPARED, call(q, VIDIOC_PREPARE_BUF, 0, -1));

		ASSERT_EQ(0, replace(q, V4L2_MEMORY_DMABUF, removing));
		expect_not_own(_metadata, q, self->offset, 0);
		/* The same memory: somebody has mapped it, but not as this. */
		EXPECT_EQ(PREPARED, call(q, VIDIOC_PREPARE_BUF, 0, fd));
		expect_not_own(_metadata, q, self->offset, PREPARED);
		close(fd);
		EXPECT_EQ(0x11, map[0]);
		munmap(map, size);
		/* vim2m cannot remove any. */
		removing = !removing && (!variant->m2m || is_rust(m2m_name()));
	}
}

int main(int argc, char **argv)
{
	prepare_device(capture_name());
	prepare_device(m2m_name());

	return test_harness_run(argc, argv);
}
