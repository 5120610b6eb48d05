// SPDX-License-Identifier: GPL-2.0
/*
 * Defects around the dma-buf core that user space can trigger. All but reader_stalls_writers are
 * of exporters and importers, so they do not depend on the core.
 *
 * A test passes if the kernel does not have the defect. If it has, that is an expected failure,
 * with the figure that shows it: these are known. What was leaked stays so until the next boot.
 *
 * Not here: the C core warns if the vmap() of an exporter fails, so that with panic_on_warn the
 * lack of memory is a panic. It takes an exporter that fails, which is the KUnit test's.
 *
 * Nothing else may make or map buffers meanwhile: those of the whole machine are counted.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include <linux/videodev2.h>

#include "dmabuf.h"

#define V4L2_CLASS	"/sys/class/video4linux"
#define DMA_API		"/sys/kernel/debug/dma-api/"
#define KCSAN		"/sys/kernel/debug/kcsan"
#define KMSG		"/dev/kmsg"

#define NSEC		1000000000LL

/* The defect is there. For the end of a test. */
#define DEFECT(fmt, ...) do {							\
	snprintf(_metadata->results->reason,					\
		 sizeof(_metadata->results->reason), fmt, ##__VA_ARGS__);	\
	if (!_metadata->exit_code)						\
		_metadata->exit_code = KSFT_XFAIL;				\
} while (0)

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);

	return time.tv_sec * NSEC + time.tv_nsec;
}

static long long ms_since(long long start)
{
	return (now() - start) / 1000000;
}

static void sleep_ms(long ms)
{
	struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

/* The number in a file, or -1. */
static long read_number(const char *path)
{
	char text[32];

	return read_text(path, text, sizeof(text)) && *text ? strtol(text, NULL, 0) : -1;
}

/*
 * videobuf2 takes references to the buffers of all planes, and then attaches them. If that fails,
 * it drops those of the planes that are attached, and leaks the others. A buffer smaller than its
 * plane is said to be is enough, and so anyone who may open a video device can do it.
 */

#define NUM_QBUFS	1000

FIXTURE(vb2) {
	struct buffer buf;
	int video;
};

FIXTURE_VARIANT(vb2) {
	const char *name;
	__u32 type;
};

FIXTURE_VARIANT_ADD(vb2, vivid) {
	.name = "vivid-000-vid-cap",
	.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
};

FIXTURE_VARIANT_ADD(vb2, vim2m) {
	.name = "vim2m",
	.type = V4L2_BUF_TYPE_VIDEO_OUTPUT,
};

/* What is written in Rust goes through the same videobuf2. */
FIXTURE_VARIANT_ADD(vb2, rust_vivid) {
	.name = "rust_vivid",
	.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
};

FIXTURE_VARIANT_ADD(vb2, rust_vim2m) {
	.name = "rust_vim2m",
	.type = V4L2_BUF_TYPE_VIDEO_OUTPUT,
};

/* The file of the video device with that name, or -1. */
static int open_video(const char *name)
{
	char path[300], line[64];
	struct dirent *entry;
	DIR *dir = opendir(V4L2_CLASS);
	int fd = -1;

	if (!dir)
		return -1;
	while (fd < 0 && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), V4L2_CLASS "/%s/name", entry->d_name);
		if (!starts_with(entry->d_name, "video") ||
		    !read_text(path, line, sizeof(line)))
			continue;
		line[strcspn(line, "\n")] = '\0';
		if (strcmp(line, name))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	closedir(dir);

	return fd;
}

FIXTURE_SETUP(vb2)
{
	self->video = open_video(variant->name);
	if (self->video < 0)
		SKIP(return, "no video device %s, or no leave to open it", variant->name);
	setup_buffer(_metadata, &self->buf, &exporter_udmabuf);
}

FIXTURE_TEARDOWN(vb2)
{
	teardown_buffer(&self->buf);
	close(self->video);
}

TEST_F(vb2, failed_attach_leaks_references)
{
	struct v4l2_format format = { .type = variant->type };
	struct v4l2_requestbuffers req = {
		.count = 1,
		.type = variant->type,
		.memory = V4L2_MEMORY_DMABUF,
	};
	struct v4l2_buffer qbuf;
	int i, before, after;
	long leaked;

	/* Whatever it was set to, the frames are to be larger than the buffer. */
	ASSERT_EQ(0, do_ioctl(self->video, VIDIOC_G_FMT, &format));
	format.fmt.pix.width = 640;
	format.fmt.pix.height = 360;
	format.fmt.pix.bytesperline = 0;
	ASSERT_EQ(0, do_ioctl(self->video, VIDIOC_S_FMT, &format));
	ASSERT_GT(format.fmt.pix.sizeimage, self->buf.size);
	ASSERT_EQ(0, do_ioctl(self->video, VIDIOC_REQBUFS, &req));
	ASSERT_EQ(1, fdinfo_count(self->buf.fd));
	before = num_buffers();

	for (i = 0; i < NUM_QBUFS; i++) {
		qbuf = (struct v4l2_buffer) {
			.type = variant->type,
			.memory = V4L2_MEMORY_DMABUF,
			.field = V4L2_FIELD_NONE,
			.bytesused = format.fmt.pix.sizeimage,
			.length = format.fmt.pix.sizeimage,
			.m.fd = self->buf.fd,
		};
		/* Any other error would be of what comes before the attachment. */
		ASSERT_EQ(-EFAULT, do_ioctl(self->video, VIDIOC_QBUF, &qbuf));
	}
	req.count = 0;
	ASSERT_EQ(0, do_ioctl(self->video, VIDIOC_REQBUFS, &req));
	leaked = fdinfo_count(self->buf.fd) - 1;

	/* The last reference that is left keeps the buffer. */
	close(self->buf.fd);
	self->buf.fd = -1;
	after = num_buffers();
	if (before >= 0)
		EXPECT_EQ(before - !leaked, after);

	if (leaked)
		DEFECT("%ld of %d references leaked", leaked, NUM_QBUFS);
}

/*
 * The first access of the CPU to a udmabuf makes a table of its pages and maps that for DMA. Two
 * that are first both make one, and one of them is leaked.
 *
 * Each buffer is one page, so that each mapping that is left is one line of the dump.
 */

#define MAX_RACERS	4
#define NUM_RACES	3000
#define RACE_SECONDS	20

struct race {
	atomic_int round;	/* that may begin; negative is the end */
	atomic_int finished;	/* accesses of this round */
	atomic_int failed;
	int fd;
};

struct racer {
	struct race *race;
	pthread_t thread;
	int cpu;
};

/* How many mappings the device udmabuf has, or -1. */
static int num_udmabuf_mappings(void)
{
	FILE *dump = fopen(DMA_API "dump", "re");
	char line[512];
	int count = 0;

	if (!dump)
		return -1;
	while (fgets(line, sizeof(line), dump))
		count += !!strstr(line, " udmabuf ");
	fclose(dump);

	return count;
}

static void run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* One access, of a direction that lets mappings of the same memory overlap. */
static void access_once(struct race *race)
{
	if (cpu_access(race->fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE))
		race->failed++;
	race->finished++;
}

static void *access_in_all_rounds(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;
	int round, last = 0;

	run_on(racer->cpu);
	for (;;) {
		while ((round = race->round) == last)
			;
		if (round < 0)
			return NULL;
		last = round;
		access_once(race);
	}
}

/* The CPUs that this thread may use: up to max of them. */
static int usable_cpus(int *cpus, int max)
{
	cpu_set_t set;
	int cpu, count = 0;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 0;
	for (cpu = 0; cpu < CPU_SETSIZE && count < max; cpu++)
		if (CPU_ISSET(cpu, &set))
			cpus[count++] = cpu;

	return count;
}

/* It disables itself when it runs out of memory. */
static bool dma_debug_enabled(void)
{
	char disabled[8];

	return read_text(DMA_API "disabled", disabled, sizeof(disabled)) && disabled[0] == 'N';
}

FIXTURE(udmabuf) {
	int dev;
	int cpus[MAX_RACERS];
	int num_cpus;
};

FIXTURE_SETUP(udmabuf)
{
	self->dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (self->dev < 0)
		SKIP(return, "/dev/udmabuf: %s", strerror(errno));
	/* As many racers as can run at the same time: each waits for the others with its CPU. */
	self->num_cpus = usable_cpus(self->cpus, MAX_RACERS);
	if (self->num_cpus < 2)
		SKIP(return, "needs two CPUs");
	if (access(DMA_API "disabled", R_OK))
		SKIP(return, "needs CONFIG_DMA_API_DEBUG, and root");
	if (!dma_debug_enabled())
		SKIP(return, "DMA-API debugging has been disabled");
}

FIXTURE_TEARDOWN(udmabuf)
{
	close(self->dev);
}

TEST_F_TIMEOUT(udmabuf, racing_first_accesses_leak_tables, 3 * RACE_SECONDS)
{
	int i, before, leaked, num = self->num_cpus;
	struct racer racers[MAX_RACERS];
	struct race race = {};
	long long start;

	before = num_udmabuf_mappings();
	ASSERT_GE(before, 0);
	/* One access is one mapping, until the buffer goes. Otherwise a leak would not be seen. */
	race.fd = udmabuf_alloc(self->dev, getpagesize(), O_RDWR);
	ASSERT_GE(race.fd, 0);
	access_once(&race);
	ASSERT_EQ(before + 1, num_udmabuf_mappings());
	close(race.fd);
	ASSERT_EQ(before, num_udmabuf_mappings());

	for (i = 1; i < num; i++) {
		racers[i] = (struct racer) { .race = &race, .cpu = self->cpus[i] };
		ASSERT_EQ(0, pthread_create(&racers[i].thread, NULL, access_in_all_rounds,
					    &racers[i]));
	}
	run_on(self->cpus[0]);

	start = now();
	for (i = 0; i < NUM_RACES && now() - start < RACE_SECONDS * NSEC; i++) {
		race.fd = udmabuf_alloc(self->dev, getpagesize(), O_RDWR);
		ASSERT_GE(race.fd, 0);
		race.finished = 0;
		race.round++;
		access_once(&race);
		while (race.finished < num)
			;
		close(race.fd);
	}
	race.round = -1;
	ASSERT_LT(0, i);
	EXPECT_EQ(0, atomic_load(&race.failed));
	for (num--; num; num--)
		ASSERT_EQ(0, pthread_join(racers[num].thread, NULL));

	/* No buffer is left, and so no mapping should be. */
	leaked = num_udmabuf_mappings() - before;
	ASSERT_TRUE(dma_debug_enabled());
	TH_LOG("%d buffers, %d threads, %lld ms", i, self->num_cpus, ms_since(start));
	if (leaked)
		DEFECT("%d tables leaked with %d buffers", leaked, i);
}

/*
 * A heap notes in each attachment whether it is mapped, with the reservation lock held. For an
 * access of the CPU, which takes another lock, it looks at that and syncs what is mapped, while
 * that may be unmapped.
 *
 * DMA-API debugging sees it if the table of pages is unmapped after its sync has begun and before
 * it has ended, and counts each page. If it was unmapped before that, but after the look, it does
 * not see it. The more pages the table has, the more often it does. KCSAN sees the race itself.
 */

#define UNMAP_SECONDS	10
#define UNMAP_PAGES	15	/* as many as a heap allocates one by one */

struct unmapper {
	pthread_t thread;
	int dev;
	int fd;
	atomic_bool stop;
	long count;
	int ret;
};

/* Attach, map, unmap, detach. */
static void *map_and_unmap(void *arg)
{
	struct unmapper *unmapper = arg;
	__u64 sum;

	while (!unmapper->stop && !unmapper->ret) {
		sum = unmapper->fd;
		unmapper->ret = do_ioctl(unmapper->dev, RUST_DMA_BUF_SUM, &sum);
		unmapper->count++;
	}

	return NULL;
}

/* Reads what the kernel has said since, and counts the data races in the heap. */
static int count_data_races(int kmsg, const char *function)
{
	char record[8192];
	int count = 0;
	ssize_t n;

	for (;;) {
		n = read(kmsg, record, sizeof(record) - 1);
		/* EPIPE: some of it has been overwritten. */
		if (n < 0 && errno != EPIPE)
			return count;
		record[n < 0 ? 0 : n] = '\0';
		if (strstr(record, "BUG: KCSAN: data-race in ") && strstr(record, function))
			count++;
	}
}

FIXTURE(heap) {
	struct buffer buf;
	struct unmapper unmapper;
	bool dma_debug;
	bool kcsan;
	int kmsg;
};

FIXTURE_VARIANT(heap) {
	const struct exporter *exporter;
	const char *function;
};

FIXTURE_VARIANT_ADD(heap, system) {
	.exporter = &exporter_system_heap,
	.function = "system_heap_",
};

static const struct exporter exporter_cma_heap = {
	.dev = "/dev/dma_heap/default_cma_region",
	.alloc = system_heap_alloc,
};

FIXTURE_VARIANT_ADD(heap, cma) {
	.exporter = &exporter_cma_heap,
	.function = "cma_heap_",
};

static char num_errors[32];

static void restore_num_errors(void)
{
	if (num_errors[0] && !write_text(DMA_API "num_errors", num_errors))
		fail_at_exit(DMA_API "num_errors");
}

static void __attribute__((constructor)) save_num_errors(void)
{
	read_text(DMA_API "num_errors", num_errors, sizeof(num_errors));
	atexit(restore_num_errors);
}

FIXTURE_SETUP(heap)
{
	int cpus[2];

	if (usable_cpus(cpus, 2) < 2)
		SKIP(return, "needs two CPUs");
	self->dma_debug = dma_debug_enabled();
	self->kcsan = !access(KCSAN, F_OK);
	if (!self->dma_debug && !self->kcsan)
		SKIP(return, "needs CONFIG_DMA_API_DEBUG or CONFIG_KCSAN, and root");
	self->kmsg = open(KMSG, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (self->kmsg < 0)
		SKIP(return, KMSG ": %s", strerror(errno));
	self->unmapper.dev = open(exporter_rust_sample.dev, O_RDWR | O_CLOEXEC);
	if (self->unmapper.dev < 0)
		SKIP(return, "%s: %s", exporter_rust_sample.dev, strerror(errno));
	setup_buffer(_metadata, &self->buf, variant->exporter);
	if (self->buf.fd < 0)
		return;
	close(self->buf.fd);
	self->buf.size = UNMAP_PAGES * getpagesize();
	self->buf.fd = alloc_another(&self->buf);
	ASSERT_GE(self->buf.fd, 0);

	/* What it finds is counted here; it need not warn. */
	if (self->dma_debug)
		ASSERT_TRUE(write_text(DMA_API "num_errors", "0"));
}

FIXTURE_TEARDOWN(heap)
{
	teardown_buffer(&self->buf);
	close(self->unmapper.dev);
	close(self->kmsg);
}

TEST_F_TIMEOUT(heap, sync_races_with_unmap, 4 * UNMAP_SECONDS)
{
	struct unmapper *unmapper = &self->unmapper;
	long long start = now();
	long errors, syncs = 0;
	int races;

	errors = read_number(DMA_API "error_count");
	ASSERT_LE(0, lseek(self->kmsg, 0, SEEK_END));
	unmapper->fd = self->buf.fd;
	ASSERT_EQ(0, pthread_create(&unmapper->thread, NULL, map_and_unmap, unmapper));
	/* Of the direction of the mapping. */
	for (; now() - start < UNMAP_SECONDS * NSEC; syncs += 2) {
		ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE));
		ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE));
	}
	unmapper->stop = true;
	ASSERT_EQ(0, pthread_join(unmapper->thread, NULL));
	ASSERT_EQ(0, unmapper->ret);
	ASSERT_LT(0, unmapper->count);

	/* Or else it may have missed some. */
	ASSERT_EQ(self->dma_debug, dma_debug_enabled());
	errors = read_number(DMA_API "error_count") - errors;
	races = count_data_races(self->kmsg, variant->function);
	TH_LOG("%ld syncs, %ld mappings", syncs, unmapper->count);
	if (errors || races)
		DEFECT("%ld pages synced while not mapped (%s), %d data races (%s)",
		       errors, self->dma_debug ? "DMA-API debugging" : "no DMA-API debugging",
		       races, self->kcsan ? "KCSAN" : "no KCSAN");
}

/*
 * The C core keeps the lock of the list of all buffers while bufinfo waits for the reservation of
 * one of them. Who allocates or closes a buffer meanwhile waits, too, and cannot be interrupted.
 */

#define HOLD_MS		2000
#define LEAD_MS		100	/* that a thread gets to begin what it is to do */
#define SLOW_MS		((HOLD_MS - 2 * LEAD_MS) / 2)

struct holder {
	pthread_t thread;
	int dev;
	int fd;
	int ret;
	atomic_bool finished;
};

static void *hold(void *arg)
{
	struct holder *holder = arg;
	__u64 args[] = { holder->fd, HOLD_MS };

	holder->ret = do_ioctl(holder->dev, DMA_BUF_TEST_HOLD, args);
	holder->finished = true;

	return NULL;
}

/* Returns how many ms it takes, or NULL if it fails. */
static void *time_bufinfo(void *unused)
{
	long long start = now();

	(void)unused;

	return read_bufinfo() ? (void *)(ms_since(start) + 1) : NULL;
}

FIXTURE(bufinfo) {
	struct buffer buf;
	struct holder holder;
};

FIXTURE_SETUP(bufinfo)
{
	if (access(BUFINFO, R_OK))
		SKIP(return, BUFINFO ": %s", strerror(errno));
	self->holder.dev = open(DMA_BUF_TEST, O_RDWR | O_CLOEXEC);
	if (self->holder.dev < 0)
		SKIP(return, DMA_BUF_TEST ": %s (modprobe dma_buf_test)", strerror(errno));
	setup_buffer(_metadata, &self->buf, &exporter_system_heap);
}

FIXTURE_TEARDOWN(bufinfo)
{
	teardown_buffer(&self->buf);
	close(self->holder.dev);
}

TEST_F(bufinfo, reader_stalls_writers)
{
	struct holder *holder = &self->holder;
	long long start, ms, max = 0;
	pthread_t reader;
	void *read_ms;
	long count = 0;
	int fd;

	holder->fd = self->buf.fd;
	ASSERT_EQ(0, pthread_create(&holder->thread, NULL, hold, holder));
	sleep_ms(LEAD_MS);
	ASSERT_EQ(0, pthread_create(&reader, NULL, time_bufinfo, NULL));
	sleep_ms(LEAD_MS);
	ASSERT_FALSE(atomic_load(&holder->finished));

	for (; !holder->finished; count++) {
		start = now();
		fd = alloc_another(&self->buf);
		ASSERT_GE(fd, 0);
		close(fd);
		ms = ms_since(start);
		max = ms > max ? ms : max;
	}
	ASSERT_EQ(0, pthread_join(holder->thread, NULL));
	ASSERT_EQ(0, pthread_join(reader, &read_ms));
	ASSERT_EQ(0, holder->ret);
	/* Otherwise nothing was tried: the reader did not get to the buffer in time. */
	ASSERT_LE(SLOW_MS, (long)read_ms);

	TH_LOG("%ld buffers, the slowest took %lld ms; the reader took %ld ms", count, max,
	       (long)read_ms);
	if (max >= SLOW_MS)
		DEFECT("a buffer took %lld ms while bufinfo waited for a reservation", max);
}

TEST_HARNESS_MAIN
