// SPDX-License-Identifier: GPL-2.0
/*
 * The dma-buf core when the kernel lacks something: memory, pages of the user, descriptors.
 *
 * Each operation is repeated: its first allocation or copy from or to the user fails, then the
 * second one, until none is left to fail. It may then fail, with an error that says why, or get by
 * without. Either way nothing may be left behind, nor be lost.
 *
 * Tests of the fixture vmap make the vmap() of an exporter fail, about which the C core warns. With
 * panic_on_warn and the C core, run the others: -F vmap.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <limits.h>
#include <sys/epoll.h>

#include <linux/videodev2.h>

#include "dmabuf.h"

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define DEBUGFS		"/sys/kernel/debug/"
#define MAX_NTH		1000	/* more than any operation needs */
#define TIMES		1000000	/* of which each fault takes one */
#define MAX_FENCES	5	/* more than a reservation has room for at first */

#define STR(x)		#x
#define XSTR(x)		STR(x)

/* What fails. */
enum { SLAB, PAGES, COPY, NUM_KINDS };

static const struct {
	const char *name;
	const char *config;
} kinds[NUM_KINDS] = {
	[SLAB] = { "failslab", "CONFIG_FAILSLAB" },
	[PAGES] = { "fail_page_alloc", "CONFIG_FAIL_PAGE_ALLOC" },
	[COPY] = { "fail_usercopy", "CONFIG_FAULT_INJECTION_USERCOPY" },
};

/* Faults of everything, but only those asked for with fail-nth. */
static const struct {
	const char *path;
	const char *value;
} settings[] = {
	{ DEBUGFS "failslab/probability", "0" },
	{ DEBUGFS "failslab/times", XSTR(TIMES) },
	{ DEBUGFS "failslab/verbose", "0" },
	{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
	{ DEBUGFS "failslab/cache-filter", "N" },
	{ DEBUGFS "fail_page_alloc/probability", "0" },
	{ DEBUGFS "fail_page_alloc/times", XSTR(TIMES) },
	{ DEBUGFS "fail_page_alloc/verbose", "0" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ DEBUGFS "fail_page_alloc/min-order", "0" },
	{ DEBUGFS "fail_usercopy/probability", "0" },
	{ DEBUGFS "fail_usercopy/times", XSTR(TIMES) },
	{ DEBUGFS "fail_usercopy/verbose", "0" },
};

struct faults {
	int fd;
	char old[ARRAY_SIZE(settings)][32];
	/* Of the operation. */
	long before[NUM_KINDS];
	int nth;
	bool injected;
	int own;	/* copies of what reads and writes fail-nth */
	int failed;
};

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);

	return ok;
}

static void restore_settings(struct faults *f)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (f->old[i][0])
			write_text(settings[i].path, f->old[i]);
	}
}

/* Last in a setup: of a setup that ends early there is no teardown. */
static void setup_faults(struct __test_metadata *_metadata, struct faults *f)
{
	int i;

	if (geteuid())
		SKIP(return, "needs root");
	f->fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	if (f->fd < 0)
		SKIP(return, FAIL_NTH ": %s (CONFIG_FAULT_INJECTION)", strerror(errno));
	if (access(DEBUGFS "failslab", X_OK))
		SKIP(return, DEBUGFS "failslab: %s (CONFIG_FAILSLAB, CONFIG_FAULT_INJECTION_DEBUG_FS)",
		     strerror(errno));
	/* So that page faults of the test do not get the faults. */
	if (mlockall(MCL_CURRENT))
		SKIP(return, "mlockall: %s", strerror(errno));

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		/* Of kinds there are not, nothing is set. */
		if (!read_text(settings[i].path, f->old[i], sizeof(f->old[i])) ||
		    write_text(settings[i].path, settings[i].value))
			continue;
		restore_settings(f);
		SKIP(return, "%s cannot be set", settings[i].path);
	}
}

/* How many faults of this kind can still be; -1 if it does not exist. */
static long times_left(int kind)
{
	char path[64], text[32];

	snprintf(path, sizeof(path), DEBUGFS "%s/times", kinds[kind].name);

	return read_text(path, text, sizeof(text)) ? atol(text) : -1;
}

static void start_faults(struct faults *f)
{
	int kind;

	for (kind = 0; kind < NUM_KINDS; kind++)
		f->before[kind] = times_left(kind);
	f->nth = 0;
	f->injected = true;
	f->own = 0;
	f->failed = 0;
}

/* Arms the next fault, unless the operation had no use for the one before. */
static bool arm_next(struct faults *f)
{
	char text[16];
	int len;

	if (!f->injected || f->nth == MAX_NTH)
		return false;
	f->nth++;
	len = snprintf(text, sizeof(text), "%d", f->nth);

	return pwrite(f->fd, text, len, 0) == len;
}

/*
 * Ends what arm_next() began, and notes whether the operation got the fault. What is left over goes
 * to the copies made here, for which EFAULT is the last one.
 */
static void disarm(struct faults *f)
{
	char text[16] = "";
	int err = errno;

	f->injected = pread(f->fd, text, sizeof(text) - 1, 0) > 0 && !atoi(text);
	if (!text[0])
		f->own++;
	while (pwrite(f->fd, "0", 1, 0) != 1)
		f->own++;
	errno = err;
}

/* Each body has to do the operation and then disarm(), before anything else. */
#define for_each_fault(f)	for (start_faults(f); arm_next(f); )

static int count_faults(const struct faults *f, int kind)
{
	int count = f->before[kind] - times_left(kind);

	return kind == COPY && count ? count - f->own : count;
}

/* The operation either succeeded or failed for want of something, and then in one of these ways. */
#define ASSERT_OUTCOME(f, ret, ...) do {						\
	static const int errors[] = { __VA_ARGS__ };					\
	bool expected = (ret) >= 0;							\
	int e;										\
											\
	for (e = 0; e < ARRAY_SIZE(errors); e++)					\
		expected |= (f)->injected && (ret) == -errors[e];			\
	ASSERT_TRUE(expected) {								\
		TH_LOG("%s with fault %d%s", strerror(-(ret)), (f)->nth,		\
		       (f)->injected ? "" : ", which was not injected");		\
	}										\
	(f)->failed += (ret) < 0;							\
} while (0)

/* It came to the end, and what is known to fail in it did. */
#define EXPECT_INJECTED(f, name, ...) do {						\
	static const int expected[] = { __VA_ARGS__ };					\
	int k, slab = count_faults(f, SLAB), pages = count_faults(f, PAGES);		\
	int copies = count_faults(f, COPY);						\
											\
	ksft_print_msg("%s: %d faults injected: %d slab, %d pages, %d copies; %d failed\n", \
		       name, slab + pages + copies, slab, pages, copies, (f)->failed);	\
	EXPECT_FALSE((f)->injected);							\
	EXPECT_EQ((f)->nth - 1, slab + pages + copies);					\
	EXPECT_LT(0, (f)->failed);							\
	for (k = 0; k < ARRAY_SIZE(expected); k++) {					\
		if ((f)->before[expected[k]] >= 0)					\
			EXPECT_LT(0, count_faults(f, expected[k])) {			\
				TH_LOG("no %s", kinds[expected[k]].name);		\
			}								\
	}										\
} while (0)

/* The number of the descriptor that would be made after n others. */
static int free_fd(int n)
{
	int fd, next;

	fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
	next = n && fd >= 0 ? free_fd(n - 1) : fd;
	close(fd);

	return next;
}

#define FDS_AT_ONCE	4	/* more than any operation makes */

/* The number in the last line of bufinfo: "Total %d objects, ...", or -1. */
static int num_buffers(void)
{
	const char *total;
	int count = -1;

	if (read_bufinfo()) {
		total = strstr(bufinfo, "Total ");
		if (total)
			sscanf(total, "Total %d objects", &count);
	}

	return count;
}

/* The same, as soon as it is what it should be: the last reference may be another task's. */
static int num_buffers_is(int expected)
{
	int i, count = num_buffers();

	for (i = 0; count != expected && i < 200; i++) {
		usleep(10000);
		count = num_buffers();
	}

	return count;
}

static bool count_is(int fd, long expected)
{
	int i;

	for (i = 0; fdinfo_count(fd) != expected && i < 200; i++)
		usleep(10000);

	return fdinfo_count(fd) == expected;
}

/*
 * What an exporter needs before it can make a buffer, so that faults are of this system call only
 */

struct source {
	int memfd;
	__u32 handle;
};

static int prepare_source(const struct buffer *buf, struct source *source)
{
	*source = (struct source){ .memfd = -1 };
	if (buf->exporter == &exporter_vgem)
		return vgem_create(buf->dev, buf->size, &source->handle);
	if (buf->exporter != &exporter_udmabuf)
		return 0;

	source->memfd = memfd_create("dmabuf-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (source->memfd < 0 || ftruncate(source->memfd, buf->size) ||
	    fcntl(source->memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		return -errno;

	return 0;
}

static int create(const struct buffer *buf, const struct source *source)
{
	struct udmabuf_create create = {
		.memfd = source->memfd,
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = buf->size,
	};
	struct drm_prime_handle prime = {
		.handle = source->handle,
		.flags = DRM_CLOEXEC | DRM_RDWR,
	};
	int ret;

	if (buf->exporter == &exporter_udmabuf)
		return do_ioctl(buf->dev, UDMABUF_CREATE, &create);
	if (buf->exporter != &exporter_vgem)
		return alloc_another(buf);
	ret = do_ioctl(buf->dev, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime);

	return ret < 0 ? ret : prime.fd;
}

static void release_source(const struct buffer *buf, struct source *source)
{
	if (source->memfd >= 0)
		close(source->memfd);
	if (source->handle)
		vgem_close(buf->dev, source->handle);
}

/*
 * Fences
 */

static int merge(int a, int b)
{
	struct sync_merge_data data = { .name = "merged", .fd2 = b };
	int ret = do_ioctl(a, SYNC_IOC_MERGE, &data);

	return ret < 0 ? ret : data.fence;
}

/* A sync file with a fence of each timeline. */
static int merged_fences(const int *timelines, int count, __u32 value)
{
	int i, fence, merged, all = create_fence(timelines[0], value);

	for (i = 1; all >= 0 && i < count; i++) {
		fence = create_fence(timelines[i], value);
		merged = fence < 0 ? fence : merge(all, fence);
		if (fence >= 0)
			close(fence);
		close(all);
		all = merged;
	}

	return all;
}

static int advance_all(const int *timelines, int count)
{
	int i, ret = 0;

	for (i = 0; !ret && i < count; i++)
		ret = advance(timelines[i]);

	return ret;
}

/* How many fences are pending for who wants to write; 0 is one that has signalled. */
static int num_pending(int fd)
{
	int ret, sync_file = export_sync_file(fd, DMA_BUF_SYNC_RW);

	if (sync_file < 0)
		return sync_file;
	ret = sync_file_status(sync_file);
	if (ret >= 0)
		ret = ret ? 0 : sync_file_num_fences(sync_file);
	close(sync_file);

	return ret;
}

/*
 * The kinds of faults
 */

FIXTURE(kind) {
	struct buffer buf;
	struct faults faults;
};

FIXTURE_VARIANT(kind) {
	int kind;
};

FIXTURE_VARIANT_ADD(kind, slab) { .kind = SLAB };
FIXTURE_VARIANT_ADD(kind, pages) { .kind = PAGES };
FIXTURE_VARIANT_ADD(kind, copies) { .kind = COPY };

FIXTURE_SETUP(kind)
{
	setup_buffer(_metadata, &self->buf, &exporter_system_heap);
	if (self->buf.fd < 0)
		return;
	if (times_left(variant->kind) < 0)
		SKIP(return, "needs %s, and root", kinds[variant->kind].config);
	setup_faults(_metadata, &self->faults);
}

FIXTURE_TEARDOWN_PARENT(kind)
{
	restore_settings(&self->faults);
}

/* The system heap does all. Without this the other tests would do without a kind. */
TEST_F(kind, is_injected)
{
	struct faults *f = &self->faults;
	int fd;

	for_each_fault(f) {
		fd = alloc_another(&self->buf);
		disarm(f);
		ASSERT_OUTCOME(f, fd, ENOMEM, EFAULT);
		close(fd);
	}
	EXPECT_INJECTED(f, "system heap", variant->kind);
}

/*
 * Operations
 *
 * The buffer has a name, a mapping and contents, which have to stay what they are. As long as the
 * text of fdinfo stays, no reference is lost or left.
 */

FIXTURE(faults) {
	struct buffer buf;
	struct faults faults;
	int timelines[MAX_FENCES];
	__u32 value;		/* of the last fences */
	unsigned char *map;
	char fdinfo[1024];
	int free_fd;
	int num_buffers;
};

EXPORTER_VARIANTS(faults);

static unsigned char content(size_t i)
{
	return i % 251;
}

/* Of this fixture and the next one. */
static void setup_operations(struct __test_metadata *_metadata, FIXTURE_DATA(faults) *self,
			     const struct exporter *exporter)
{
	size_t i;

	setup_buffer(_metadata, &self->buf, exporter);
	if (self->buf.fd < 0)
		return;
	for (i = 0; i < MAX_FENCES; i++) {
		self->timelines[i] = open(SW_SYNC, O_RDWR | O_CLOEXEC);
		if (self->timelines[i] < 0)
			SKIP(return, SW_SYNC ": %s", strerror(errno));
	}
	self->num_buffers = num_buffers();
	if (self->num_buffers < 0)
		SKIP(return, BUFINFO ": %s", strerror(errno));
	ASSERT_EQ(0, set_name(self->buf.fd, "before"));
	self->map = map(self->buf.fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, self->map);
	for (i = 0; i < self->buf.size; i++)
		self->map[i] = content(i);
	strcpy(self->fdinfo, read_fdinfo(self->buf.fd));
	setup_faults(_metadata, &self->faults);
	self->free_fd = free_fd(FDS_AT_ONCE);
}

FIXTURE_SETUP(faults)
{
	setup_operations(_metadata, self, variant->exporter);
}

FIXTURE_TEARDOWN_PARENT(faults)
{
	restore_settings(&self->faults);
}

static bool has_contents(const unsigned char *map, size_t size)
{
	size_t i;

	for (i = 0; i < size && map[i] == content(i); i++)
		;

	return i == size;
}

/* What is wrong with the buffer or the task, or NULL. */
static const char *damage(const FIXTURE_DATA(faults) *self)
{
	const struct buffer *buf = &self->buf;

	if (free_fd(FDS_AT_ONCE) != self->free_fd)
		return "a descriptor is left or lost";
	if (strcmp(read_fdinfo(buf->fd), self->fdinfo))
		return read_fdinfo(buf->fd);
	if (lseek(buf->fd, 0, SEEK_END) != (off_t)buf->size)
		return "the size has changed";
	if (!has_contents(self->map, buf->size))
		return "the contents have changed";
	if (num_buffers_is(self->num_buffers) != self->num_buffers)
		return "a buffer is left or lost";

	return NULL;
}

#define ASSERT_INTACT() do {								\
	const char *what = damage(self);						\
											\
	ASSERT_EQ(NULL, what) {								\
		TH_LOG("%s after fault %d", what, self->faults.nth);			\
	}										\
} while (0)

TEST_F(faults, create)
{
	struct faults *f = &self->faults;
	struct source source;
	int fd, next;

	for_each_fault(f) {
		ASSERT_EQ(0, prepare_source(&self->buf, &source));
		next = free_fd(0);
		/* What the loop has armed went to the above. */
		f->nth--;
		ASSERT_TRUE(arm_next(f));
		fd = create(&self->buf, &source);
		disarm(f);
		ASSERT_OUTCOME(f, fd, ENOMEM, EFAULT);
		/* DRM installs the descriptor before it copies the number of it to the user. */
		if (fd == -EFAULT && self->buf.exporter == &exporter_vgem)
			close(next);
		if (fd >= 0)
			close(fd);
		release_source(&self->buf, &source);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "create", SLAB, COPY);
}

TEST_HARNESS_MAIN
