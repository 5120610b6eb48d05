// SPDX-License-Identifier: GPL-2.0
/*
 * The dma-buf core when the kernel lacks something: memory, pages of the user, descriptors.
 *
 * Each operation is repeated: its first allocation or copy from or to the user fails, then the
 * second one, until none is left to fail. It may then fail, with an error that says why, or get by
 * without. Either way nothing may be left behind, nor be lost.
 *
 * The tests vmap_sum and vmap_qbuf make the vmap() of an exporter fail, about which the C core
 * warns once. To run the others only, as for the C core with panic_on_warn:
 * -T vmap_sum -T vmap_qbuf.
 *
 * Nothing else may make or close buffers meanwhile: those of the whole machine are counted.
 */

#define _GNU_SOURCE
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

#define WITH_SLAB	(1 << SLAB)
#define WITH_COPY	(1 << COPY)

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

static char old_settings[ARRAY_SIZE(settings)][32];

static void restore_settings(void)
{
	const char *failed = NULL;
	int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (old_settings[i][0] && !write_text(settings[i].path, old_settings[i]))
			failed = settings[i].path;
	}
	if (failed)
		fail_at_exit(failed);
}

/* Of kinds there are not, nothing is saved. */
static void __attribute__((constructor)) save_settings(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		read_text(settings[i].path, old_settings[i], sizeof(old_settings[i]));
	atexit(restore_settings);
}

struct faults {
	int fd;
	/* Of the operation. */
	long before[NUM_KINDS];
	int nth;
	bool injected;
	int own;	/* copies of what reads and writes fail-nth */
	int failed;
};

static void setup_faults(struct __test_metadata *_metadata, struct faults *f)
{
	int i;

	/* These have no fault injected. */
	if (starts_with(_metadata->name, "no_descriptor"))
		return;
	if (geteuid())
		SKIP(return, "needs root");
	f->fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	if (f->fd < 0)
		SKIP(return, FAIL_NTH ": %s (CONFIG_FAULT_INJECTION)", strerror(errno));
	if (access(DEBUGFS "failslab", X_OK))
		SKIP(return, "failslab: %s (CONFIG_FAILSLAB, CONFIG_FAULT_INJECTION_DEBUG_FS)",
		     strerror(errno));
	/* So that page faults of the test do not get the faults. */
	if (mlockall(MCL_CURRENT))
		SKIP(return, "mlockall: %s", strerror(errno));

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (old_settings[i][0] && !write_text(settings[i].path, settings[i].value))
			SKIP(return, "%s: %s", settings[i].path, strerror(errno));
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

/* One more round, unless the operation did not get as far as the last fault. */
static bool next_fault(struct faults *f)
{
	return f->injected && f->nth++ < MAX_NTH;
}

/* From here on, until disarm(), there has to be nothing but the operation. */
static void arm(struct faults *f)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", f->nth);

	/* If it fails, there is no fault, and too few of them are counted. */
	if (pwrite(f->fd, text, len, 0) != len)
		f->nth = MAX_NTH;
}

/* Notes whether the operation got the fault. If it did not, the copies made here may get it. */
static void disarm(struct faults *f)
{
	char text[16] = "";
	int err = errno;

	if (pread(f->fd, text, sizeof(text) - 1, 0) > 0)
		f->injected = !atoi(text);
	else
		f->injected = false;
	f->own += !text[0];
	while (pwrite(f->fd, "0", 1, 0) != 1)
		f->own++;
	errno = err;
}

#define for_each_fault(f)	for (start_faults(f); next_fault(f); )

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

/* It came to the end, and what is known to be in it did fail. */
static void expect_injected(struct __test_metadata *_metadata, const struct faults *f,
			    const char *name, unsigned int expected)
{
	int kind, total = 0, of_expected = 0, counts[NUM_KINDS];
	unsigned int existing = 0;

	for (kind = 0; kind < NUM_KINDS; kind++) {
		counts[kind] = count_faults(f, kind);
		total += counts[kind];
		if (f->before[kind] >= 0)
			existing |= 1 << kind;
	}
	ksft_print_msg("%s: %d faults injected: %d slab, %d pages, %d copies; %d failed\n", name,
		       total, counts[SLAB], counts[PAGES], counts[COPY], f->failed);
	EXPECT_FALSE(f->injected);
	EXPECT_EQ(f->nth - 1, total);
	if (!(expected & existing) && !total) {
		/* A failure stays one. */
		if (_metadata->exit_code != KSFT_FAIL)
			SKIP(return, "needs CONFIG_FAULT_INJECTION_USERCOPY");
		return;
	}
	EXPECT_LT(0, f->failed);
	/*
	 * Which allocation has which number differs a little from round to round, as caches are
	 * refilled, so that a single copy at the end may be passed over.
	 */
	for (kind = 0; kind < NUM_KINDS; kind++) {
		if (expected & existing & 1 << kind)
			of_expected += counts[kind];
	}
	EXPECT_LT(0, of_expected);
}

#define EXPECT_INJECTED(f, name, expected)	expect_injected(_metadata, f, name, expected)

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

FIXTURE_TEARDOWN(kind)
{
	teardown_buffer(&self->buf);
}

/* The system heap does all. Without this the other tests would do without a kind. */
TEST_F(kind, is_injected)
{
	struct faults *f = &self->faults;
	int fd;

	for_each_fault(f) {
		arm(f);
		fd = alloc_another(&self->buf);
		disarm(f);
		ASSERT_OUTCOME(f, fd, ENOMEM, EFAULT);
		close(fd);
	}
	EXPECT_INJECTED(f, "create", 1 << variant->kind);
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

FIXTURE_SETUP(faults)
{
	size_t i;

	setup_buffer(_metadata, &self->buf, variant->exporter);
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

/* Descriptors and mappings end with the test. */
FIXTURE_TEARDOWN(faults)
{
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
	int i;

	if (free_fd(FDS_AT_ONCE) != self->free_fd)
		return "a descriptor is left or lost";
	/* The last reference may be another task's, for a moment. */
	for (i = 0; strcmp(read_fdinfo(buf->fd), self->fdinfo) && i < 200; i++)
		usleep(10000);
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
		TH_LOG("%s, after fault %d", what, self->faults.nth);			\
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
		arm(f);
		fd = create(&self->buf, &source);
		disarm(f);
		ASSERT_OUTCOME(f, fd, ENOMEM, EFAULT);
		if (fd >= 0)
			close(fd);
		/* DRM copies the descriptor to the user when it has been installed. */
		else if (fd == -EFAULT && self->buf.exporter == &exporter_vgem)
			close(next);
		release_source(&self->buf, &source);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "create", WITH_SLAB | WITH_COPY);
}

/* To touch a page may fail as well, but then it is tried again. */
TEST_F(faults, mmap)
{
	struct faults *f = &self->faults;
	size_t i, page = getpagesize(), size = self->buf.size;
	volatile unsigned char *touched;
	unsigned char *addr;
	int ret;

	for_each_fault(f) {
		arm(f);
		addr = map(self->buf.fd, size);
		ret = addr == MAP_FAILED ? -errno : 0;
		touched = addr;
		for (i = 0; !ret && i < size; i += page)
			(void)touched[i];
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM);
		if (!ret) {
			ASSERT_TRUE(has_contents(addr, size));
			munmap(addr, size);
		}
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "mmap", WITH_SLAB);
}

TEST_F(faults, set_name)
{
	struct faults *f = &self->faults;
	int ret;

	for_each_fault(f) {
		arm(f);
		ret = set_name(self->buf.fd, "after");
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		if (!ret) {
			ASSERT_NE(NULL, strstr(read_fdinfo(self->buf.fd), "name:\tafter\n"));
			ASSERT_EQ(0, set_name(self->buf.fd, "before"));
		}
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "SET_NAME", WITH_SLAB | WITH_COPY);
}

/* The first access to a buffer: that is when udmabuf maps it. */
TEST_F(faults, sync_start)
{
	struct faults *f = &self->faults;
	int fd, ret;

	for_each_fault(f) {
		fd = alloc_another(&self->buf);
		ASSERT_GE(fd, 0);
		arm(f);
		ret = cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START);
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		if (ret)
			ASSERT_EQ(0, cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
		ASSERT_EQ(0, cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
		close(fd);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "SYNC START", self->buf.exporter == &exporter_udmabuf ?
			WITH_SLAB | WITH_COPY : WITH_COPY);
}

TEST_F(faults, sync_end)
{
	struct faults *f = &self->faults;
	int ret;

	for_each_fault(f) {
		ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
		arm(f);
		ret = cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END);
		disarm(f);
		ASSERT_OUTCOME(f, ret, EFAULT);
		if (ret)
			ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "SYNC END", WITH_COPY);
}

/* With so many fences pending. They stay, whatever becomes of the sync file. */
static void fail_export_sync_file(struct __test_metadata *_metadata, FIXTURE_DATA(faults) *self,
				  int count, const char *name)
{
	struct faults *f = &self->faults;
	int sync_file, fd = self->buf.fd;

	if (count) {
		sync_file = merged_fences(self->timelines, count, ++self->value);
		ASSERT_GE(sync_file, 0);
		ASSERT_EQ(0, import_sync_file(fd, DMA_BUF_SYNC_READ, sync_file));
		close(sync_file);
	}
	for_each_fault(f) {
		arm(f);
		sync_file = export_sync_file(fd, DMA_BUF_SYNC_RW);
		disarm(f);
		ASSERT_OUTCOME(f, sync_file, ENOMEM, EFAULT);
		if (sync_file >= 0) {
			ASSERT_EQ(count ? count : 1, sync_file_num_fences(sync_file));
			ASSERT_EQ(!count, sync_file_status(sync_file));
			close(sync_file);
		}
		ASSERT_EQ(count, num_pending(fd));
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, name, WITH_SLAB | WITH_COPY);
	if (count)
		ASSERT_EQ(0, advance_all(self->timelines, MAX_FENCES));
	EXPECT_EQ(0, num_pending(fd));
}

TEST_F(faults, export_sync_file)
{
	fail_export_sync_file(_metadata, self, 0, "EXPORT_SYNC_FILE of no fence");
	fail_export_sync_file(_metadata, self, 1, "EXPORT_SYNC_FILE of 1 fence");
	fail_export_sync_file(_metadata, self, MAX_FENCES,
			      "EXPORT_SYNC_FILE of " XSTR(MAX_FENCES) " fences");
}

/* Either all fences are imported, or none is. */
static void fail_import_sync_file(struct __test_metadata *_metadata, FIXTURE_DATA(faults) *self,
				  int count, const char *name)
{
	struct faults *f = &self->faults;
	int ret, fd, sync_file;

	for_each_fault(f) {
		/* Once there is room for fences, it stays. */
		fd = alloc_another(&self->buf);
		ASSERT_GE(fd, 0);
		sync_file = merged_fences(self->timelines, count, ++self->value);
		ASSERT_GE(sync_file, 0);
		arm(f);
		ret = import_sync_file(fd, DMA_BUF_SYNC_WRITE, sync_file);
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		ASSERT_EQ(ret ? 0 : count, num_pending(fd));
		if (ret) {
			ASSERT_EQ(0, import_sync_file(fd, DMA_BUF_SYNC_WRITE, sync_file));
			ASSERT_EQ(count, num_pending(fd));
		}
		close(sync_file);
		ASSERT_EQ(0, advance_all(self->timelines, MAX_FENCES));
		ASSERT_EQ(POLL_RW, poll_now(fd, POLL_RW));
		close(fd);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, name, WITH_SLAB | WITH_COPY);
}

TEST_F(faults, import_sync_file)
{
	fail_import_sync_file(_metadata, self, 1, "IMPORT_SYNC_FILE of 1 fence");
	fail_import_sync_file(_metadata, self, MAX_FENCES,
			      "IMPORT_SYNC_FILE of " XSTR(MAX_FENCES) " fences");
}

/* Another buffer with a fence that signals when the first timeline gets to self->value. */
static int alloc_busy(FIXTURE_DATA(faults) *self)
{
	int ret, fd = alloc_another(&self->buf);

	if (fd < 0)
		return fd;
	ret = add_fence(fd, DMA_BUF_SYNC_WRITE, self->timelines[0], ++self->value);
	if (!ret)
		return fd;
	close(fd);

	return ret;
}

static bool becomes_ready(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLL_RW };

	return poll(&pfd, 1, TIMEOUT * 1000) == 1 && pfd.revents;
}

TEST_F(faults, poll)
{
	struct faults *f = &self->faults;
	int fd, ret;

	for_each_fault(f) {
		fd = alloc_busy(self);
		ASSERT_GE(fd, 0);
		arm(f);
		ret = poll_now(fd, POLL_RW);
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		ASSERT_GE(0, ret);
		ASSERT_EQ(0, poll_now(fd, POLL_RW));
		ASSERT_EQ(0, advance(self->timelines[0]));
		ASSERT_TRUE(becomes_ready(fd));
		ASSERT_EQ(POLL_RW, poll_now(fd, POLL_RW));
		/* What waited for the fence had a reference. */
		ASSERT_TRUE(count_is(fd, 1));
		close(fd);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "poll", WITH_COPY);
}

TEST_F(faults, epoll)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT };
	struct faults *f = &self->faults;
	int fd, ep, ret;

	for_each_fault(f) {
		ep = epoll_create1(EPOLL_CLOEXEC);
		ASSERT_GE(ep, 0);
		fd = alloc_busy(self);
		ASSERT_GE(fd, 0);
		arm(f);
		ret = epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		if (ret)
			ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event));
		ASSERT_EQ(0, epoll_wait(ep, &event, 1, 0));
		ASSERT_EQ(0, advance(self->timelines[0]));
		ASSERT_EQ(1, epoll_wait(ep, &event, 1, TIMEOUT * 1000));
		ASSERT_TRUE(count_is(fd, 1));
		close(fd);
		close(ep);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "epoll", WITH_SLAB | WITH_COPY);
}

/* A read() that failed has read nothing; those after it get all. */
static void fail_read(struct __test_metadata *_metadata, FIXTURE_DATA(faults) *self,
		      const char *path, const char *name)
{
	struct faults *f = &self->faults;
	static char text[1 << 16], expected[1 << 16];
	size_t len;
	int file, ret;

	ASSERT_TRUE(read_text(path, expected, sizeof(expected)));
	ASSERT_NE(NULL, strstr(expected, "before\n"));
	for_each_fault(f) {
		memset(text, 0, sizeof(text));
		file = open(path, O_RDONLY | O_CLOEXEC);
		ASSERT_GE(file, 0);
		arm(f);
		ret = read(file, text, sizeof(text) - 1);
		ret = ret < 0 ? -errno : ret;
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		len = ret < 0 ? 0 : ret;
		while ((ret = read(file, text + len, sizeof(text) - 1 - len)) > 0)
			len += ret;
		ASSERT_STREQ(expected, text);
		close(file);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, name, WITH_SLAB | WITH_COPY);
}

TEST_F(faults, fdinfo)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->buf.fd);
	fail_read(_metadata, self, path, "read fdinfo");
}

TEST_F(faults, bufinfo)
{
	fail_read(_metadata, self, BUFINFO, "read bufinfo");
}

TEST_F(faults, open_bufinfo)
{
	struct faults *f = &self->faults;
	int file;

	for_each_fault(f) {
		arm(f);
		file = open(BUFINFO, O_RDONLY | O_CLOEXEC);
		file = file < 0 ? -errno : file;
		disarm(f);
		ASSERT_OUTCOME(f, file, ENOMEM, EFAULT);
		if (file >= 0)
			close(file);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "open bufinfo", WITH_SLAB | WITH_COPY);
}

/* A message that is lost gives up its reference. */
TEST_F(faults, send)
{
	struct faults *f = &self->faults;
	int ret, socks[2];

	for_each_fault(f) {
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks));
		arm(f);
		ret = send_fd(socks[0], self->buf.fd, 0) ? 0 : -errno;
		disarm(f);
		/* ENOBUFS is how sockets say ENOMEM. */
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT, ENOBUFS);
		close(socks[0]);
		close(socks[1]);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "sendmsg", WITH_SLAB | WITH_COPY);
}

/* As receive_fd(), or -errno: ENODATA for a message that has come without its descriptor. */
static int receive(int sock, unsigned long long *ino)
{
	int fd;

	errno = ENODATA;
	fd = receive_fd(sock, ino);

	return fd < 0 ? -errno : fd;
}

TEST_F(faults, receive)
{
	unsigned long long sent = inode_of(self->buf.fd), ino;
	struct faults *f = &self->faults;
	int fd, socks[2];

	for_each_fault(f) {
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks));
		ASSERT_TRUE(send_fd(socks[0], self->buf.fd, sent));
		arm(f);
		fd = receive(socks[1], &ino);
		disarm(f);
		ASSERT_OUTCOME(f, fd, ENOMEM, EFAULT);
		if (fd >= 0) {
			ASSERT_EQ(sent, ino);
			ASSERT_EQ(sent, inode_of(fd));
			close(fd);
		}
		close(socks[0]);
		close(socks[1]);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "recvmsg", WITH_COPY);
}

/* Attach, and map if the importer does. */
TEST_F(faults, import)
{
	struct faults *f = &self->faults;
	__u32 handle;
	int ret, dev;

	for_each_fault(f) {
		dev = vgem_open();
		if (dev < 0)
			SKIP(return, "vgem: %s", strerror(errno));
		arm(f);
		ret = vgem_import(dev, self->buf.fd, &handle);
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		/* If the handle could not be copied to the user, it is there, and goes with dev. */
		if (!ret)
			ASSERT_EQ(0, vgem_close(dev, handle));
		close(dev);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "PRIME_FD_TO_HANDLE", WITH_SLAB | WITH_COPY);
}

/* The sample attaches, maps, unmaps, detaches and reads what vmap() gives it. */
TEST_F(faults, vmap_sum)
{
	struct faults *f = &self->faults;
	__u64 arg, sum = 0;
	size_t i;
	int dev, ret;

	dev = open(exporter_rust_sample.dev, O_RDWR | O_CLOEXEC);
	if (dev < 0)
		SKIP(return, "%s: %s", exporter_rust_sample.dev, strerror(errno));
	self->free_fd = free_fd(FDS_AT_ONCE);
	for (i = 0; i < self->buf.size; i++)
		sum += content(i);

	for_each_fault(f) {
		arg = self->buf.fd;
		arm(f);
		ret = do_ioctl(dev, RUST_DMA_BUF_SUM, &arg);
		disarm(f);
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT);
		ASSERT_EQ(ret ? (__u64)self->buf.fd : sum, arg);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, "attach, map and vmap", WITH_SLAB | WITH_COPY);
	close(dev);
}

/*
 * V4L2
 */

static const char * const videos[] = { "rust_vivid", "rust_vim2m", "vivid-000-vid-cap", "vim2m" };

struct video {
	int fd;
	size_t size;	/* of a frame */
};

static int request(const struct video *video, __u32 memory, __u32 count)
{
	struct v4l2_requestbuffers request = {
		.count = count,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = memory,
	};

	return do_ioctl(video->fd, VIDIOC_REQBUFS, &request);
}

/* With frames as small as it has them. */
static int open_video(const char *name, struct video *video)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	char path[64], text[64];
	int i, ret;

	for (i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/sys/class/video4linux/video%d/name", i);
		if (!read_text(path, text, sizeof(text)))
			continue;
		text[strcspn(text, "\n")] = '\0';
		if (!strcmp(text, name))
			break;
	}
	if (i == 64)
		return -ENOENT;
	snprintf(path, sizeof(path), "/dev/video%d", i);
	video->fd = open(path, O_RDWR | O_CLOEXEC);
	if (video->fd < 0)
		return -errno;
	ret = do_ioctl(video->fd, VIDIOC_G_FMT, &format);
	if (!ret) {
		format.fmt.pix.width = 64;
		format.fmt.pix.height = 48;
		format.fmt.pix.bytesperline = 0;
		ret = do_ioctl(video->fd, VIDIOC_S_FMT, &format);
	}
	video->size = format.fmt.pix.sizeimage;
	if (ret)
		close(video->fd);

	return ret;
}

/*
 * videobuf2 drops a reference less than it took if it cannot attach a buffer, which is said here
 * but is no failure of the core. See dmabuf_defects.c. Returns how many buffers it has so kept, or
 * -1 if the device does not take the buffer at all.
 */
static int fail_qbuf(struct __test_metadata *_metadata, FIXTURE_DATA(faults) *self,
		     const struct video *video, const char *name)
{
	struct v4l2_buffer buf = {
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
	};
	struct faults *f = &self->faults;
	size_t page = getpagesize(), size = (video->size + page - 1) / page * page;
	int ret, fd, leaked = 0;

	/* Contiguous memory, or memory of one kind of exporter, may be all that it takes. */
	fd = self->buf.exporter->alloc(self->buf.dev, size, O_RDWR);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, request(video, V4L2_MEMORY_DMABUF, 1));
	buf.m.fd = fd;
	buf.length = size;
	ret = do_ioctl(video->fd, VIDIOC_QBUF, &buf);
	ASSERT_EQ(0, request(video, V4L2_MEMORY_DMABUF, 0));
	if (ret < 0 && fdinfo_count(fd) == 2)
		self->num_buffers++;
	close(fd);
	if (ret < 0) {
		ksft_print_msg("%s: %s without a fault: left out\n", name, strerror(-ret));
		return -1;
	}

	self->free_fd = free_fd(FDS_AT_ONCE);
	for_each_fault(f) {
		fd = self->buf.exporter->alloc(self->buf.dev, size, O_RDWR);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(0, request(video, V4L2_MEMORY_DMABUF, 1));
		buf.m.fd = fd;
		buf.length = size;
		arm(f);
		ret = do_ioctl(video->fd, VIDIOC_QBUF, &buf);
		disarm(f);
		/* EFAULT: of a copy, or that vb2_vmalloc could not map; EINVAL: vb2_dma_contig. */
		ASSERT_OUTCOME(f, ret, ENOMEM, EFAULT, EINVAL);
		ASSERT_EQ(0, request(video, V4L2_MEMORY_DMABUF, 0));
		if (ret < 0 && fdinfo_count(fd) == 2) {
			self->num_buffers++;
			leaked++;
		} else {
			ASSERT_TRUE(count_is(fd, 1)) {
				TH_LOG("count %ld, after fault %d: %s", fdinfo_count(fd), f->nth,
				       strerror(-ret));
			}
		}
		close(fd);
		ASSERT_INTACT();
	}
	EXPECT_INJECTED(f, name, WITH_SLAB | WITH_COPY);

	return leaked;
}

TEST_F_TIMEOUT(faults, vmap_qbuf, 60)
{
	int i, ret, leaked = 0, tried = 0;
	struct video video;
	char name[64];

	for (i = 0; i < ARRAY_SIZE(videos); i++) {
		ret = open_video(videos[i], &video);
		if (ret) {
			ksft_print_msg("%s: %s: left out\n", videos[i], strerror(-ret));
			continue;
		}
		snprintf(name, sizeof(name), "QBUF of %s", videos[i]);
		ret = fail_qbuf(_metadata, self, &video, name);
		close(video.fd);
		self->free_fd = free_fd(FDS_AT_ONCE);
		tried += ret >= 0;
		leaked += ret > 0 ? ret : 0;
	}
	if (!tried && _metadata->exit_code != KSFT_FAIL)
		SKIP(return, "no video device took the buffer");
	if (leaked && _metadata->exit_code == KSFT_PASS) {
		_metadata->exit_code = KSFT_XFAIL;
		snprintf(_metadata->results->reason, sizeof(_metadata->results->reason),
			 "videobuf2 kept %d buffers it could not attach", leaked);
	}
}

FIXTURE(expbuf) {
	struct faults faults;
	struct video video;
	int num_buffers;
};

FIXTURE_VARIANT(expbuf) {
	const char *name;
};

FIXTURE_VARIANT_ADD(expbuf, rust_vivid) { .name = "rust_vivid" };
FIXTURE_VARIANT_ADD(expbuf, rust_vim2m) { .name = "rust_vim2m" };
FIXTURE_VARIANT_ADD(expbuf, vivid) { .name = "vivid-000-vid-cap" };
FIXTURE_VARIANT_ADD(expbuf, vim2m) { .name = "vim2m" };

FIXTURE_SETUP(expbuf)
{
	int ret = open_video(variant->name, &self->video);

	if (ret)
		SKIP(return, "%s: %s", variant->name, strerror(-ret));
	self->num_buffers = num_buffers();
	if (self->num_buffers < 0)
		SKIP(return, BUFINFO ": %s", strerror(errno));
	ASSERT_EQ(0, request(&self->video, V4L2_MEMORY_MMAP, 1));
	setup_faults(_metadata, &self->faults);
}

FIXTURE_TEARDOWN(expbuf)
{
}

static int export(const struct video *video)
{
	struct v4l2_exportbuffer export = {
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.flags = O_CLOEXEC | O_RDWR,
	};
	int ret = do_ioctl(video->fd, VIDIOC_EXPBUF, &export);

	return ret ? ret : export.fd;
}

TEST_F(expbuf, faults)
{
	int fd, next = free_fd(0), last = free_fd(FDS_AT_ONCE);
	struct faults *f = &self->faults;

	for_each_fault(f) {
		arm(f);
		fd = export(&self->video);
		disarm(f);
		/* EINVAL is how videobuf2 says that there is no buffer, for whatever reason. */
		ASSERT_OUTCOME(f, fd, ENOMEM, EFAULT, EINVAL);
		if (fd >= 0)
			close(fd);
		/* V4L2 copies the descriptor to the user when it has been installed. */
		else if (fd == -EFAULT)
			close(next);
		ASSERT_EQ(last, free_fd(FDS_AT_ONCE));
		ASSERT_EQ(self->num_buffers, num_buffers_is(self->num_buffers));
	}
	EXPECT_INJECTED(f, "EXPBUF", WITH_SLAB | WITH_COPY);
	EXPECT_EQ(0, request(&self->video, V4L2_MEMORY_MMAP, 0));
}

/*
 * Descriptors
 */

/* Leave so many numbers for descriptors. */
static bool limit_fds(int count)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return false;
	limit.rlim_cur = free_fd(count);

	return !setrlimit(RLIMIT_NOFILE, &limit);
}

static bool unlimit_fds(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return false;
	limit.rlim_cur = limit.rlim_max;

	return !setrlimit(RLIMIT_NOFILE, &limit);
}

TEST_F(expbuf, no_descriptor)
{
	int fd;

	ASSERT_TRUE(limit_fds(0));
	fd = export(&self->video);
	ASSERT_TRUE(unlimit_fds());
	EXPECT_EQ(-EMFILE, fd);
	EXPECT_EQ(self->num_buffers, num_buffers_is(self->num_buffers));
	ASSERT_TRUE(limit_fds(1));
	fd = export(&self->video);
	ASSERT_TRUE(unlimit_fds());
	EXPECT_LE(0, fd);
}

TEST_F(faults, no_descriptor_create)
{
	int i, fd;

	for (i = 0; i <= self->buf.exporter->fds; i++) {
		ASSERT_TRUE(limit_fds(i));
		fd = alloc_another(&self->buf);
		ASSERT_TRUE(unlimit_fds());
		ASSERT_EQ(i < self->buf.exporter->fds ? -EMFILE : 0, fd < 0 ? fd : 0);
		close(fd);
		ASSERT_INTACT();
	}
}

TEST_F(faults, no_descriptor_export_sync_file)
{
	int i, count, sync_file, fd = self->buf.fd;

	/* Without a fence, with one, and with some. */
	for (count = 0; count <= MAX_FENCES; count++) {
		if (count) {
			ASSERT_EQ(0, add_fence(fd, DMA_BUF_SYNC_READ,
					       self->timelines[count - 1], 1));
		}
		for (i = 0; i <= 1; i++) {
			ASSERT_TRUE(limit_fds(i));
			sync_file = export_sync_file(fd, DMA_BUF_SYNC_RW);
			ASSERT_TRUE(unlimit_fds());
			ASSERT_EQ(i ? 0 : -EMFILE, sync_file < 0 ? sync_file : 0);
			close(sync_file);
			ASSERT_EQ(count, num_pending(fd));
			ASSERT_INTACT();
		}
	}
}

/* The message comes, without the descriptor. */
TEST_F(faults, no_descriptor_receive)
{
	unsigned long long sent = inode_of(self->buf.fd), ino;
	int i, fd, socks[2];

	for (i = 0; i <= 1; i++) {
		ino = 0;
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks));
		ASSERT_TRUE(send_fd(socks[0], self->buf.fd, sent));
		ASSERT_TRUE(limit_fds(i));
		fd = receive(socks[1], &ino);
		ASSERT_TRUE(unlimit_fds());
		EXPECT_EQ(sent, ino);
		ASSERT_EQ(i ? 0 : -ENODATA, fd < 0 ? fd : 0);
		close(fd);
		close(socks[0]);
		close(socks[1]);
		ASSERT_INTACT();
	}
}

TEST_HARNESS_MAIN
