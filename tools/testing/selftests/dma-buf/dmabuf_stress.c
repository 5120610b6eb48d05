// SPDX-License-Identifier: GPL-2.0
/*
 * Stress of the dma-buf core: threads and processes that share buffers of all exporters there are,
 * and do all that the user ABI has, at random.
 *
 * Shared buffers have a lock and known contents, which every way to see them has to show. Racy
 * buffers have neither: they are used while other threads close them. Their descriptors are from
 * ranges of numbers that nothing else is in, so that a number that is out of date is of another
 * racy buffer or of nothing.
 */

#define _GNU_SOURCE
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/sync_file.h>
#include <linux/udmabuf.h>

#include "kselftest.h"
#include "rust_dma_buf.h"

#define MAX_THREADS	64
#define NUM_SLOTS	12
#define NUM_RACY	6	/* of each of the two kinds */
#define NUM_HELPERS	2
#define NUM_TIMELINES	4
#define MAX_HELD	64
#define MAX_PAGES	8
#define RACY_PAGES	2
#define MAX_REPORTS	20
#define STUCK		60	/* seconds without progress */
#define LATE		20	/* seconds for a fence, which takes milliseconds */
#define SETTLE		10	/* seconds for what is freed later */
#define EVERY_OP	5	/* seconds in which each operation gets its turn */

#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"
#define SW_SYNC		"/sys/kernel/debug/sync/sw_sync"
#define BUFINFO_SIZE	(1 << 20)
#define POLL_RW		(POLLIN | POLLOUT)

/* What an operation returns if there was nothing to do, which does not count. */
#define NOTHING		1

/* The ioctls of sw_sync have no header. */
struct sw_sync_create_fence_data {
	__u32	value;
	char	name[32];
	__s32	fence;
};

#define SW_SYNC_IOC_CREATE_FENCE	_IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC			_IOW('W', 1, __u32)

/* What the machine has. The first are exporters. */
enum {
	SYSTEM_HEAP,
	UDMABUF,
	VGEM,
	RUST_SAMPLE,
	NUM_EXPORTERS,
	FENCES = NUM_EXPORTERS,
	BUFFER_LIST,
	NUM_NEEDS
};

static const char * const need_names[NUM_NEEDS] = {
	[SYSTEM_HEAP] = "/dev/dma_heap/system",
	[UDMABUF] = "/dev/udmabuf",
	[VGEM] = "/dev/dri/card* of vgem",
	[RUST_SAMPLE] = "/dev/rust-dma-buf",
	[FENCES] = SW_SYNC,
	[BUFFER_LIST] = BUFINFO,
};

struct buffer {
	unsigned int id;
	unsigned int generation;	/* of the contents */
	int exporter;
	size_t size;
	int fd;
	bool named;
	char name[DMA_BUF_NAME_LEN];
};

struct slot {
	pthread_rwlock_t lock;
	struct buffer buf;		/* none if the descriptor is -1 */
};

struct counts {
	unsigned long done;
	unsigned long failed;
	int error;			/* the last one */
};

#define MAX_OPS		48

struct worker {
	pthread_t thread;
	atomic_int tid;
	uint64_t random;
	int drm;			/* handles are per open file, and not counted */
	char *text;
	atomic_int op;
	atomic_ulong progress;
	atomic_bool ended;
	struct counts counts[MAX_OPS];
	/* for the main thread */
	unsigned long seen;
	time_t since;
};

/* All fences have a descriptor here until they have signalled: see create_fence(). */
struct timeline {
	pthread_mutex_t lock;
	int fd;
	unsigned int next;		/* the last value that a fence was made for */
	unsigned int value;
	unsigned int target;
	int num_held;
	struct {
		int fd;
		unsigned int value;
	} held[MAX_HELD];
};

struct helper {
	pthread_mutex_t lock;
	int socket;
	pid_t pid;
};

static long page_size;
static int devices[NUM_NEEDS];
static int exporters[NUM_EXPORTERS], num_exporters;
static struct slot slots[NUM_SLOTS];
static struct worker workers[MAX_THREADS];
static struct timeline timelines[NUM_TIMELINES];
static struct helper helpers[NUM_HELPERS];
static atomic_uint last_id;
static atomic_bool stop, stop_timelines;
static atomic_int num_mismatches, num_late;

/*
 * The system heap syncs attachments for the processor without the lock under which they are mapped
 * and unmapped, so its buffers are synced or imported, not both at a time.
 */
enum { RACY_SYNC, RACY_IMPORT, NUM_KINDS };

static const int racy_base[NUM_KINDS] = { 768, 896 };
static atomic_int racy[NUM_KINDS][NUM_RACY];

static bool have(int need)
{
	return devices[need] >= 0;
}

/*
 * Small things
 */

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;

	return x ^ (x >> 31);
}

/* A number below n. */
static unsigned int below(struct worker *w, unsigned int n)
{
	w->random++;

	return mix(w->random) % n;
}

static time_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);

	return ts.tv_sec;
}

/* One line of output, in one piece. */
static void __printf(1, 2) say(const char *format, ...)
{
	char text[512], *end;
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	for (end = text; (end = strchr(end, '\n')); )
		*end = ' ';
	printf("# %s\n", text);
}

#define report(counter, format, ...)						\
	do {									\
		if (atomic_fetch_add(counter, 1) < MAX_REPORTS)			\
			say(format, ##__VA_ARGS__);				\
	} while (0)

#define mismatch(format, ...)	report(&num_mismatches, "mismatch: " format, ##__VA_ARGS__)
#define late(format, ...)	report(&num_late, "late: " format, ##__VA_ARGS__)

/* What an ioctl returns, or -errno. */
static int do_ioctl(int fd, unsigned long cmd, void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

/* Returns 0 or -errno, also if not all of it fits. */
static int read_text(const char *path, char *text, size_t size)
{
	int ret, fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	text[0] = '\0';
	if (fd < 0)
		return -errno;
	while ((n = read(fd, text + len, size - 1 - len)) > 0)
		len += n;
	ret = n < 0 ? -errno : len < size - 1 ? 0 : -EFBIG;
	close(fd);
	text[len] = '\0';

	return ret;
}

static int cpu_access(int fd, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return do_ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
}

/* The events, of those asked for, that there are in time, or -errno. */
static int wait_for(int fd, short events, int milliseconds)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	return poll(&pfd, 1, milliseconds) < 0 ? -errno : pfd.revents;
}

/*
 * Exporters
 */

static int alloc_system_heap(size_t size)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	int ret = do_ioctl(devices[SYSTEM_HEAP], DMA_HEAP_IOCTL_ALLOC, &data);

	return ret < 0 ? ret : (int)data.fd;
}

static int alloc_udmabuf(size_t size)
{
	struct udmabuf_create create = {
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = size,
	};
	int memfd, fd = -EINVAL;

	memfd = memfd_create("dmabuf-stress", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memfd < 0)
		return -errno;
	if (!ftruncate(memfd, size) && !fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)) {
		create.memfd = memfd;
		fd = do_ioctl(devices[UDMABUF], UDMABUF_CREATE, &create);
	}
	close(memfd);
	/*
	 * udmabuf does all accesses with the direction of the first one, and without a lock for
	 * two first ones.
	 */
	if (fd >= 0) {
		cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START);
		cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END);
	}

	return fd;
}

static void close_handle(int drm, __u32 handle)
{
	struct drm_gem_close arg = { .handle = handle };

	do_ioctl(drm, DRM_IOCTL_GEM_CLOSE, &arg);
}

/* The descriptor of a buffer, or -errno. */
static int handle_to_fd(int drm, __u32 handle)
{
	struct drm_prime_handle prime = {
		.handle = handle,
		.flags = DRM_CLOEXEC | DRM_RDWR,
	};
	int ret = do_ioctl(drm, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime);

	return ret < 0 ? ret : prime.fd;
}

static int alloc_vgem(int drm, size_t size)
{
	struct drm_mode_create_dumb dumb = {
		.width = page_size / 4,
		.height = size / page_size,
		.bpp = 32,
	};
	int ret = do_ioctl(drm, DRM_IOCTL_MODE_CREATE_DUMB, &dumb);

	if (ret < 0)
		return ret;
	ret = dumb.size == size ? handle_to_fd(drm, dumb.handle) : -EINVAL;
	close_handle(drm, dumb.handle);

	return ret;
}

static int alloc_rust_sample(size_t size)
{
	__u64 bytes = size;

	return do_ioctl(devices[RUST_SAMPLE], RUST_DMA_BUF_ALLOC, &bytes);
}

static int alloc_buffer(struct worker *w, int exporter, size_t size)
{
	switch (exporter) {
	case SYSTEM_HEAP:
		return alloc_system_heap(size);
	case UDMABUF:
		return alloc_udmabuf(size);
	case VGEM:
		return alloc_vgem(w->drm, size);
	default:
		return alloc_rust_sample(size);
	}
}

static int any_exporter(struct worker *w)
{
	return exporters[below(w, num_exporters)];
}

/*
 * Contents
 */

static uint64_t word_of(const struct buffer *buf, size_t i)
{
	return mix(((uint64_t)buf->id << 40) ^ ((uint64_t)buf->generation << 16) ^ i);
}

static uint64_t sum_of(const struct buffer *buf)
{
	uint64_t word, sum = 0;
	size_t i;

	for (i = 0; i < buf->size / sizeof(word); i++) {
		for (word = word_of(buf, i); word; word >>= 8)
			sum += word & 0xff;
	}

	return sum;
}

/* The first difference. */
struct difference {
	uint64_t offset;
	uint64_t expected;
	uint64_t found;
};

static bool differs(const void *map, const struct buffer *buf, struct difference *diff)
{
	const volatile uint64_t *words = map;
	uint64_t expected, found;
	size_t i;

	for (i = 0; i < buf->size / sizeof(*words); i++) {
		expected = word_of(buf, i);
		found = words[i];
		if (found != expected) {
			*diff = (struct difference){ i * sizeof(*words), expected, found };
			return true;
		}
	}

	return false;
}

static void report_difference(const char *where, const struct buffer *buf,
			      const struct difference *diff)
{
	mismatch("%s: buffer %u of %s, generation %u: at %#llx of %#zx: expected %llx, found %llx",
		 where, buf->id, need_names[buf->exporter], buf->generation,
		 (unsigned long long)diff->offset, buf->size, (unsigned long long)diff->expected,
		 (unsigned long long)diff->found);
}

static void check_map(const char *where, const void *map, const struct buffer *buf)
{
	struct difference diff;

	if (differs(map, buf, &diff))
		report_difference(where, buf, &diff);
}

/* Look at the contents through a descriptor. Returns 0 or -errno, whatever they are. */
static int find_difference(int fd, const struct buffer *buf, struct difference *diff, bool *found)
{
	void *map = mmap(NULL, buf->size, PROT_READ, MAP_SHARED, fd, 0);
	int ret;

	*found = false;
	if (map == MAP_FAILED)
		return -errno;
	ret = cpu_access(fd, DMA_BUF_SYNC_READ | DMA_BUF_SYNC_START);
	if (!ret) {
		*found = differs(map, buf, diff);
		ret = cpu_access(fd, DMA_BUF_SYNC_READ | DMA_BUF_SYNC_END);
	}
	munmap(map, buf->size);

	return ret;
}

static int check_fd(const char *where, int fd, const struct buffer *buf)
{
	struct difference diff;
	bool found;
	int ret;

	ret = find_difference(fd, buf, &diff, &found);
	if (found)
		report_difference(where, buf, &diff);

	return ret;
}

static int export_sync_file(int fd, __u32 flags)
{
	struct dma_buf_export_sync_file arg = { .flags = flags, .fd = -1 };
	int ret = do_ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &arg);

	return ret < 0 ? ret : arg.fd;
}

/* Who writes has waited for all fences. Nobody else adds some to a buffer that is locked. */
static void check_idle(const struct buffer *buf)
{
	struct sync_file_info info = {};
	int sync_file = export_sync_file(buf->fd, DMA_BUF_SYNC_RW);

	if (sync_file < 0)
		return;
	if (!do_ioctl(sync_file, SYNC_IOC_FILE_INFO, &info) && info.status != 1)
		mismatch("sync: buffer %u of %s: expected status 1 of its fences, found %d",
			 buf->id, need_names[buf->exporter], info.status);
	close(sync_file);
}

/* Give the buffer new contents. */
static int write_contents(struct buffer *buf)
{
	uint64_t *map = mmap(NULL, buf->size, PROT_READ | PROT_WRITE, MAP_SHARED, buf->fd, 0);
	size_t i;
	int ret;

	if (map == MAP_FAILED)
		return -errno;
	ret = cpu_access(buf->fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START);
	if (!ret) {
		check_idle(buf);
		buf->generation++;
		for (i = 0; i < buf->size / sizeof(*map); i++)
			map[i] = word_of(buf, i);
		ret = cpu_access(buf->fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END);
	}
	munmap(map, buf->size);

	return ret;
}

static int create_buffer(struct worker *w, struct buffer *buf, int exporter)
{
	int ret;

	*buf = (struct buffer){
		.id = atomic_fetch_add(&last_id, 1) + 1,
		.exporter = exporter,
		.size = (1 + below(w, MAX_PAGES)) * page_size,
	};
	buf->fd = alloc_buffer(w, exporter, buf->size);
	if (buf->fd < 0)
		return buf->fd;
	ret = write_contents(buf);
	if (ret) {
		close(buf->fd);
		buf->fd = -1;
	}

	return ret;
}

/*
 * Shared buffers. Nobody waits for a lock: there are others.
 */

static struct buffer *lock_any(struct worker *w, bool write, struct slot **locked)
{
	int i, start = below(w, NUM_SLOTS);
	struct slot *slot;

	for (i = 0; i < NUM_SLOTS; i++) {
		slot = &slots[(start + i) % NUM_SLOTS];
		if (write ? pthread_rwlock_trywrlock(&slot->lock) :
			    pthread_rwlock_tryrdlock(&slot->lock))
			continue;
		if (slot->buf.fd >= 0) {
			*locked = slot;
			return &slot->buf;
		}
		pthread_rwlock_unlock(&slot->lock);
	}

	return NULL;
}

static int op_create(struct worker *w, int exporter)
{
	struct slot *slot = &slots[below(w, NUM_SLOTS)];
	struct buffer buf;
	int ret;

	if (pthread_rwlock_trywrlock(&slot->lock))
		return NOTHING;
	ret = create_buffer(w, &buf, exporter);
	if (!ret) {
		if (slot->buf.fd >= 0)
			close(slot->buf.fd);
		slot->buf = buf;
	}
	pthread_rwlock_unlock(&slot->lock);

	return ret;
}

/* Use a buffer that nobody changes, or that nobody else uses. */
#define DEFINE_SHARED_OP(op, write)						\
static int op(struct worker *w, int arg)					\
{										\
	struct slot *slot;							\
	struct buffer *buf = lock_any(w, write, &slot);				\
	int ret;								\
										\
	if (!buf)								\
		return NOTHING;							\
	ret = do_##op(w, buf, arg);						\
	pthread_rwlock_unlock(&slot->lock);					\
										\
	return ret;								\
}

static int do_op_write(struct worker *w, struct buffer *buf, int arg)
{
	(void)w;
	(void)arg;

	return write_contents(buf);
}

DEFINE_SHARED_OP(op_write, true)

static int do_op_check(struct worker *w, struct buffer *buf, int arg)
{
	(void)w;
	(void)arg;

	return check_fd("mmap", buf->fd, buf);
}

DEFINE_SHARED_OP(op_check, false)

/* Returns the length. */
static size_t random_name(struct worker *w, char *name, size_t max)
{
	size_t i, len = below(w, max + 1);

	for (i = 0; i < len; i++)
		name[i] = below(w, 16) ? 'a' + (int)below(w, 26) : '\n';
	name[len] = '\0';

	return len;
}

static int set_name(struct worker *w, int fd, const void *name)
{
	return do_ioctl(fd, below(w, 2) ? DMA_BUF_SET_NAME_A : DMA_BUF_SET_NAME_B, (void *)name);
}

static int do_op_name(struct worker *w, struct buffer *buf, int arg)
{
	char name[DMA_BUF_NAME_LEN + 8];
	size_t len = random_name(w, name, DMA_BUF_NAME_LEN + 6);
	int ret = set_name(w, buf->fd, name);

	(void)arg;
	if (len >= DMA_BUF_NAME_LEN) {
		if (ret != -EINVAL)
			mismatch("name of %zu bytes: expected %d, found %d", len, -EINVAL, ret);
		return ret == -EINVAL ? 0 : ret;
	}
	if (!ret) {
		strcpy(buf->name, name);
		buf->named = true;
	}

	return ret;
}

DEFINE_SHARED_OP(op_name, true)

/* As the kernel shows it: as it is, or with newlines escaped. */
static bool has_name(const char *text, const char *name)
{
	char line[16 + 4 * DMA_BUF_NAME_LEN] = "\nname:\t";
	size_t len = strlen(line);
	const char *c;

	snprintf(line + len, sizeof(line) - len, "%s\n", name);
	if (strstr(text, line))
		return true;
	for (c = name; *c; c++)
		len += sprintf(line + len, *c == '\n' ? "\\012" : "%c", *c);
	strcpy(line + len, "\n");

	return strstr(text, line);
}

static int do_op_fdinfo(struct worker *w, struct buffer *buf, int arg)
{
	char path[64], expected[96];
	int ret;

	(void)arg;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", buf->fd);
	ret = read_text(path, w->text, BUFINFO_SIZE);
	if (ret)
		return ret;
	snprintf(expected, sizeof(expected), "\nsize:\t%zu\n", buf->size);
	if (!strstr(w->text, expected))
		mismatch("fdinfo: buffer %u: expected size %zu, found: %s", buf->id, buf->size,
			 w->text);
	if (buf->named ? !has_name(w->text, buf->name) : !!strstr(w->text, "\nname:\t"))
		mismatch("fdinfo: buffer %u: expected name '%s' (%s), found: %s", buf->id,
			 buf->name, buf->named ? "set" : "not set", w->text);

	return 0;
}

DEFINE_SHARED_OP(op_fdinfo, false)

static int do_op_maps(struct worker *w, struct buffer *buf, int arg)
{
	void *map = mmap(NULL, buf->size, PROT_READ, MAP_SHARED, buf->fd, 0);
	bool found = false;
	char start[32];
	FILE *maps;
	int ret;

	(void)arg;
	if (map == MAP_FAILED)
		return -errno;
	maps = fopen("/proc/self/maps", "re");
	if (!maps) {
		ret = -errno;
		munmap(map, buf->size);
		return ret;
	}
	snprintf(start, sizeof(start), "%08lx-", (unsigned long)map);
	while (fgets(w->text, BUFINFO_SIZE, maps)) {
		if (strncmp(w->text, start, strlen(start)))
			continue;
		found = strstr(w->text, "/dmabuf:");
		break;
	}
	fclose(maps);
	munmap(map, buf->size);
	if (!found)
		mismatch("maps: buffer %u of %s: expected /dmabuf: at %s, not found", buf->id,
			 need_names[buf->exporter], start);

	return 0;
}

DEFINE_SHARED_OP(op_maps, false)

static int do_op_bufinfo(struct worker *w, struct buffer *buf, int arg)
{
	char expected[64];
	struct stat st;
	int ret;

	(void)arg;
	if (fstat(buf->fd, &st))
		return -errno;
	ret = read_text(BUFINFO, w->text, BUFINFO_SIZE);
	if (ret)
		return ret;
	snprintf(expected, sizeof(expected), "\t%08llu\t", (unsigned long long)st.st_ino);
	if (!strstr(w->text, expected))
		mismatch("bufinfo: buffer %u of %s: expected inode %s, not found", buf->id,
			 need_names[buf->exporter], expected);

	return 0;
}

DEFINE_SHARED_OP(op_bufinfo, false)

static int do_op_seek(struct worker *w, struct buffer *buf, int arg)
{
	off_t end = lseek(buf->fd, 0, SEEK_END);

	(void)w;
	(void)arg;
	if (end < 0)
		return -errno;
	if (end != (off_t)buf->size || lseek(buf->fd, 0, SEEK_SET))
		mismatch("lseek: buffer %u: expected %zu, found %lld", buf->id, buf->size,
			 (long long)end);

	return 0;
}

DEFINE_SHARED_OP(op_seek, false)

static int do_op_stat(struct worker *w, struct buffer *buf, int arg)
{
	struct stat st;

	(void)w;
	(void)arg;
	if (fstat(buf->fd, &st))
		return -errno;
	if (st.st_size != (off_t)buf->size)
		mismatch("fstat: buffer %u: expected %zu, found %lld", buf->id, buf->size,
			 (long long)st.st_size);

	return 0;
}

DEFINE_SHARED_OP(op_stat, false)

static int do_op_dup(struct worker *w, struct buffer *buf, int arg)
{
	int ret, fd = fcntl(buf->fd, F_DUPFD_CLOEXEC, 0);

	(void)w;
	(void)arg;
	if (fd < 0)
		return -errno;
	ret = check_fd("dup", fd, buf);
	close(fd);

	return ret;
}

DEFINE_SHARED_OP(op_dup, false)

/*
 * Imports
 */

static int sum(int fd, uint64_t *result)
{
	__u64 arg = fd;
	int ret = do_ioctl(devices[RUST_SAMPLE], RUST_DMA_BUF_SUM, &arg);

	*result = arg;

	return ret;
}

static int do_op_sum(struct worker *w, struct buffer *buf, int arg)
{
	uint64_t found;
	int ret = sum(buf->fd, &found);

	(void)w;
	(void)arg;
	if (!ret && found != sum_of(buf))
		mismatch("sum: buffer %u of %s, generation %u: expected %llu, found %llu", buf->id,
			 need_names[buf->exporter], buf->generation,
			 (unsigned long long)sum_of(buf), (unsigned long long)found);

	return ret;
}

/* The lock is against the syncs of others: see RACY_SYNC. */
DEFINE_SHARED_OP(op_sum, true)

/* What DRM maps of its own buffers. */
static void check_drm_map(int drm, __u32 handle, const struct buffer *buf)
{
	struct drm_mode_map_dumb dumb = { .handle = handle };
	void *map;

	if (do_ioctl(drm, DRM_IOCTL_MODE_MAP_DUMB, &dumb))
		return;
	map = mmap(NULL, buf->size, PROT_READ, MAP_SHARED, drm, dumb.offset);
	if (map == MAP_FAILED)
		return;
	check_map("mmap of DRM", map, buf);
	munmap(map, buf->size);
}

static int fd_to_handle(int drm, int fd, __u32 *handle)
{
	struct drm_prime_handle prime = { .fd = fd };
	int ret = do_ioctl(drm, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime);

	*handle = prime.handle;

	return ret;
}

static int do_op_prime(struct worker *w, struct buffer *buf, int arg)
{
	struct stat st, again;
	__u32 handle;
	int ret, fd;

	(void)arg;
	ret = fd_to_handle(w->drm, buf->fd, &handle);
	if (ret)
		return ret;
	if (buf->exporter == VGEM)
		check_drm_map(w->drm, handle, buf);
	fd = handle_to_fd(w->drm, handle);
	close_handle(w->drm, handle);
	if (fd < 0)
		return fd;
	/* It is the same buffer that comes back. */
	if (!fstat(buf->fd, &st) && !fstat(fd, &again) && st.st_ino != again.st_ino)
		mismatch("prime: buffer %u of %s: expected inode %llu, found %llu", buf->id,
			 need_names[buf->exporter], (unsigned long long)st.st_ino,
			 (unsigned long long)again.st_ino);
	ret = check_fd("prime", fd, buf);
	close(fd);

	return ret;
}

DEFINE_SHARED_OP(op_prime, true)

/*
 * Fences
 */

/*
 * A sync file whose fence the thread of the timelines signals in some milliseconds, or -errno.
 *
 * sw_sync cannot signal a fence of which the last reference goes away at the same time, so there is
 * always one more.
 */
static int create_fence(struct worker *w)
{
	struct timeline *line = &timelines[below(w, NUM_TIMELINES)];
	struct sw_sync_create_fence_data data = { .name = "stress" };
	int ret = -EAGAIN;

	pthread_mutex_lock(&line->lock);
	if (line->num_held < MAX_HELD) {
		data.value = ++line->next;
		ret = do_ioctl(line->fd, SW_SYNC_IOC_CREATE_FENCE, &data);
	}
	if (!ret) {
		ret = fcntl(data.fence, F_DUPFD_CLOEXEC, 0);
		if (ret < 0)
			ret = -errno;
		line->held[line->num_held].fd = data.fence;
		line->held[line->num_held++].value = data.value;
	}
	pthread_mutex_unlock(&line->lock);

	return ret;
}

static int create_merged_fence(struct worker *w)
{
	struct sync_merge_data data = { .name = "merged" };
	int fence = create_fence(w), ret;

	if (fence < 0)
		return fence;
	ret = create_fence(w);
	if (ret >= 0) {
		data.fd2 = ret;
		ret = do_ioctl(fence, SYNC_IOC_MERGE, &data);
		close(data.fd2);
	}
	close(fence);

	return ret < 0 ? ret : data.fence;
}

/* What there is without timelines is idle. */
static int any_fence(struct worker *w, int fd)
{
	if (!have(FENCES) || !below(w, 8))
		return export_sync_file(fd, DMA_BUF_SYNC_RW);

	return below(w, 4) ? create_fence(w) : create_merged_fence(w);
}

static int import_fence(struct worker *w, int fd)
{
	struct dma_buf_import_sync_file arg = { .flags = 1 + below(w, DMA_BUF_SYNC_RW) };
	int ret;

	arg.fd = any_fence(w, fd);
	if (arg.fd < 0)
		return arg.fd;
	ret = do_ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg);
	close(arg.fd);

	return ret;
}

static int do_op_import(struct worker *w, struct buffer *buf, int arg)
{
	(void)arg;

	return import_fence(w, buf->fd);
}

DEFINE_SHARED_OP(op_import, false)

static int do_op_export(struct worker *w, struct buffer *buf, int arg)
{
	int events, sync_file = export_sync_file(buf->fd, 1 + below(w, DMA_BUF_SYNC_RW));

	(void)arg;
	if (sync_file < 0)
		return sync_file;
	events = wait_for(sync_file, POLLIN, below(w, 2) ? 0 : LATE * 1000);
	/* No fences are added to those that a sync file has. */
	if (!events && wait_for(sync_file, POLLIN, LATE * 1000) != POLLIN)
		late("sync file of buffer %u of %s has not signalled for %d s", buf->id,
		     need_names[buf->exporter], LATE);
	close(sync_file);

	return events < 0 ? events : 0;
}

DEFINE_SHARED_OP(op_export, false)

static short any_events(struct worker *w)
{
	static const short events[] = { POLLIN, POLLOUT, POLL_RW };

	return events[below(w, ARRAY_SIZE(events))];
}

static int do_op_poll(struct worker *w, struct buffer *buf, int arg)
{
	int ret = wait_for(buf->fd, any_events(w), arg ? (int)below(w, arg) : 0);

	return ret < 0 ? ret : 0;
}

DEFINE_SHARED_OP(op_poll, false)

/* Nobody else adds fences, and those there are signal soon: a wait that does not end is a bug. */
static int do_op_poll_wait(struct worker *w, struct buffer *buf, int arg)
{
	short wanted = any_events(w);
	int ret;

	(void)arg;
	ret = import_fence(w, buf->fd);
	if (ret < 0)
		return ret;
	ret = wait_for(buf->fd, wanted, LATE * 1000);
	if (ret >= 0 && (!ret || (ret & ~wanted)))
		late("poll of buffer %u of %s for %#x returned %#x", buf->id,
		     need_names[buf->exporter], wanted, ret);

	return ret < 0 ? ret : 0;
}

DEFINE_SHARED_OP(op_poll_wait, true)

static int epoll_and_close(struct worker *w, int fd, bool close_it)
{
	struct epoll_event event = { .events = any_events(w) };
	int ret = 0, epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0) {
		ret = -errno;
		if (close_it)
			close(fd);
		return ret;
	}
	if (below(w, 2))
		event.events |= EPOLLET;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		ret = -errno;
	if (!ret && epoll_wait(epoll, &event, 1, below(w, 3)) < 0)
		ret = -errno;
	if (close_it)
		close(fd);
	epoll_wait(epoll, &event, 1, below(w, 3));
	close(epoll);

	return ret;
}

/* The buffer lives, so the set keeps it after the descriptor is closed. */
static int do_op_epoll(struct worker *w, struct buffer *buf, int arg)
{
	int fd = fcntl(buf->fd, F_DUPFD_CLOEXEC, 0);

	(void)arg;

	return fd < 0 ? -errno : epoll_and_close(w, fd, true);
}

DEFINE_SHARED_OP(op_epoll, false)

/* The buffer goes away while it is in the set and a fence is yet to signal. */
static int op_epoll_last(struct worker *w, int arg)
{
	struct buffer buf;
	int ret;

	(void)arg;
	ret = create_buffer(w, &buf, any_exporter(w));
	if (ret)
		return ret;
	ret = import_fence(w, buf.fd);
	if (!ret)
		return epoll_and_close(w, buf.fd, true);
	close(buf.fd);

	return ret;
}

/* A mapping keeps the buffer, also without a descriptor. */
static int op_map_last(struct worker *w, int arg)
{
	struct buffer buf;
	void *map;
	int ret;

	(void)arg;
	ret = create_buffer(w, &buf, any_exporter(w));
	if (ret)
		return ret;
	if (below(w, 2))
		import_fence(w, buf.fd);
	map = mmap(NULL, buf.size, PROT_READ, MAP_SHARED, buf.fd, 0);
	ret = map == MAP_FAILED ? -errno : 0;
	close(buf.fd);
	if (ret)
		return ret;
	check_map("mapping after close", map, &buf);
	munmap(map, buf.size);

	return 0;
}

/*
 * Other processes
 */

struct request {
	struct buffer buf;
	bool rename;
	bool give_back;
};

struct reply {
	int error;
	bool differs;
	struct difference difference;
};

static int send_fd(int socket, const void *data, size_t len, int fd)
{
	struct iovec iov = { (void *)data, len };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}

	return sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -errno;
}

/* The descriptor is -1 if there is none. */
static int receive_fd(int socket, void *data, size_t len, int *fd)
{
	struct iovec iov = { data, len };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);

	*fd = -1;
	if (n < 0)
		return -errno;
	if (CMSG_FIRSTHDR(&message) && control.header.cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(&control.header), sizeof(*fd));

	return n == (ssize_t)len ? 0 : -EPIPE;
}

static int use_received(int fd, struct request *request, struct reply *reply)
{
	struct buffer *buf = &request->buf;
	int ret;

	if (fd < 0)
		return -EBADF;
	ret = find_difference(fd, buf, &reply->difference, &reply->differs);
	if (ret)
		return ret;
	ret = wait_for(fd, POLL_RW, 0);
	if (ret < 0)
		return ret;
	if (request->rename) {
		ret = do_ioctl(fd, DMA_BUF_SET_NAME_B, buf->name);
		if (ret < 0)
			return ret;
	}
	ret = cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START);

	return ret ? ret : cpu_access(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END);
}

/* Returns when the other side has closed its end. */
static void help(int socket)
{
	struct request request;
	int fd;

	while (!receive_fd(socket, &request, sizeof(request), &fd)) {
		struct reply reply = {};

		reply.error = use_received(fd, &request, &reply);
		if (request.give_back || fd < 0) {
			send_fd(socket, &reply, sizeof(reply), fd);
			if (fd >= 0)
				close(fd);
		} else {
			/* The reply says that it is closed. */
			close(fd);
			send_fd(socket, &reply, sizeof(reply), -1);
		}
	}
}

static struct helper *lock_helper(struct worker *w)
{
	int i, start = below(w, NUM_HELPERS);

	for (i = 0; i < NUM_HELPERS; i++) {
		struct helper *helper = &helpers[(start + i) % NUM_HELPERS];

		if (!pthread_mutex_trylock(&helper->lock))
			return helper;
	}

	return NULL;
}

/* Have the buffer used by another process. If it is not to come back, it is closed here. */
static int pass(struct helper *helper, struct request *request)
{
	struct buffer *buf = &request->buf;
	struct reply reply;
	int ret, fd;

	ret = send_fd(helper->socket, request, sizeof(*request), buf->fd);
	if (!request->give_back)
		close(buf->fd);
	if (ret)
		return ret;
	ret = receive_fd(helper->socket, &reply, sizeof(reply), &fd);
	if (ret)
		return ret;
	if (reply.differs)
		report_difference("another process", buf, &reply.difference);
	ret = reply.error;
	if (fd >= 0) {
		if (!ret)
			ret = check_fd("given back", fd, buf);
		close(fd);
	} else if (request->give_back && !ret) {
		ret = -EBADF;
	}

	return ret;
}

static int do_op_send(struct worker *w, struct buffer *buf, int arg)
{
	struct helper *helper = lock_helper(w);
	struct request request = {
		.buf = *buf,
		.give_back = true,
		.rename = below(w, 2),
	};
	int ret;

	(void)arg;
	if (!helper)
		return NOTHING;
	if (request.rename)
		random_name(w, request.buf.name, sizeof(request.buf.name) - 1);
	ret = pass(helper, &request);
	pthread_mutex_unlock(&helper->lock);
	if (request.rename && !ret) {
		strcpy(buf->name, request.buf.name);
		buf->named = true;
	}

	return ret;
}

DEFINE_SHARED_OP(op_send, true)

/* The other process has the last reference. */
static int op_send_last(struct worker *w, int arg)
{
	struct request request = {};
	struct helper *helper;
	int ret;

	(void)arg;
	helper = lock_helper(w);
	if (!helper)
		return NOTHING;
	ret = create_buffer(w, &request.buf, any_exporter(w));
	if (!ret) {
		if (below(w, 2))
			import_fence(w, request.buf.fd);
		ret = pass(helper, &request);
	}
	pthread_mutex_unlock(&helper->lock);

	return ret;
}

/* The last reference is in a message that nobody receives. */
static int op_send_lost(struct worker *w, int arg)
{
	int sockets[2], ret;
	struct buffer buf;

	(void)arg;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
		return -errno;
	ret = create_buffer(w, &buf, any_exporter(w));
	if (!ret) {
		ret = send_fd(sockets[0], "", 1, buf.fd);
		close(buf.fd);
	}
	close(sockets[0]);
	close(sockets[1]);

	return ret;
}

/*
 * Racy buffers
 */

static int racy_exporter(struct worker *w, int kind)
{
	int exporter = any_exporter(w);

	if (kind == RACY_IMPORT && exporter == SYSTEM_HEAP)
		return -1;

	return exporter;
}

static void put_racy(int kind, int i, int fd)
{
	/* Whoever takes a number out is the only one to close it. */
	fd = atomic_exchange(&racy[kind][i], fd);
	if (fd >= 0)
		close(fd);
}

static int op_racy_create(struct worker *w, int arg)
{
	int kind = below(w, NUM_KINDS), exporter = racy_exporter(w, kind), fd, high;

	(void)arg;
	if (exporter < 0)
		return NOTHING;
	fd = alloc_buffer(w, exporter, RACY_PAGES * page_size);
	if (fd < 0)
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, racy_base[kind]);
	if (high < 0)
		high = -errno;
	close(fd);
	if (high < 0)
		return high;
	put_racy(kind, below(w, NUM_RACY), high);

	return 0;
}

static int op_racy_close(struct worker *w, int arg)
{
	(void)arg;
	put_racy(below(w, NUM_KINDS), below(w, NUM_RACY), -1);

	return 0;
}

/* One more descriptor of one and the same. */
static int op_racy_dup(struct worker *w, int arg)
{
	int kind = below(w, NUM_KINDS), fd = atomic_load(&racy[kind][below(w, NUM_RACY)]);

	(void)arg;
	if (fd < 0)
		return NOTHING;
	fd = fcntl(fd, F_DUPFD_CLOEXEC, racy_base[kind]);
	if (fd < 0)
		return -errno;
	put_racy(kind, below(w, NUM_RACY), fd);

	return 0;
}

#define DEFINE_RACY_OP(op, kind)						\
static int op(struct worker *w, int arg)					\
{										\
	int fd = atomic_load(&racy[kind][below(w, NUM_RACY)]);			\
										\
	(void)arg;								\
	if (fd < 0)								\
		return NOTHING;							\
	/* Others may close it right now. */					\
	if (!below(w, 4))							\
		sched_yield();							\
										\
	return do_##op(w, fd);							\
}

static int do_op_racy_name(struct worker *w, int fd)
{
	char name[DMA_BUF_NAME_LEN];

	if (!below(w, 16))
		return set_name(w, fd, (void *)1) == -EFAULT ? 0 : -EBADF;
	random_name(w, name, sizeof(name) - 1);

	return set_name(w, fd, name);
}

DEFINE_RACY_OP(op_racy_name, below(w, NUM_KINDS))

static int do_op_racy_sync(struct worker *w, int fd)
{
	__u64 flags = 1 + below(w, DMA_BUF_SYNC_RW);
	int ret = cpu_access(fd, flags | DMA_BUF_SYNC_START);

	return ret ? ret : cpu_access(fd, flags | DMA_BUF_SYNC_END);
}

DEFINE_RACY_OP(op_racy_sync, RACY_SYNC)

static int do_op_racy_poll(struct worker *w, int fd)
{
	int ret = wait_for(fd, any_events(w), below(w, 10));

	return ret < 0 ? ret : ret & POLLNVAL ? -EBADF : 0;
}

DEFINE_RACY_OP(op_racy_poll, below(w, NUM_KINDS))

static int do_op_racy_epoll(struct worker *w, int fd)
{
	return epoll_and_close(w, fd, false);
}

DEFINE_RACY_OP(op_racy_epoll, below(w, NUM_KINDS))

static int do_op_racy_export(struct worker *w, int fd)
{
	int ret = export_sync_file(fd, 1 + below(w, DMA_BUF_SYNC_RW));

	if (ret < 0)
		return ret;
	wait_for(ret, POLLIN, below(w, 3));
	close(ret);

	return 0;
}

DEFINE_RACY_OP(op_racy_export, below(w, NUM_KINDS))

static int do_op_racy_import(struct worker *w, int fd)
{
	return import_fence(w, fd);
}

DEFINE_RACY_OP(op_racy_import, below(w, NUM_KINDS))

static int do_op_racy_map(struct worker *w, int fd)
{
	size_t i, size = RACY_PAGES * page_size;
	volatile char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return -errno;
	for (i = 0; i < size; i += page_size)
		map[i] = below(w, 256);
	munmap((void *)map, size);

	return 0;
}

DEFINE_RACY_OP(op_racy_map, below(w, NUM_KINDS))

static int do_op_racy_stat(struct worker *w, int fd)
{
	struct stat st;

	(void)w;

	return fstat(fd, &st) || lseek(fd, 0, SEEK_END) < 0 ? -errno : 0;
}

DEFINE_RACY_OP(op_racy_stat, below(w, NUM_KINDS))

static int do_op_racy_fdinfo(struct worker *w, int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);

	return read_text(path, w->text, BUFINFO_SIZE);
}

DEFINE_RACY_OP(op_racy_fdinfo, below(w, NUM_KINDS))

static int do_op_racy_sum(struct worker *w, int fd)
{
	uint64_t result;

	(void)w;

	return sum(fd, &result);
}

DEFINE_RACY_OP(op_racy_sum, RACY_IMPORT)

static int do_op_racy_prime(struct worker *w, int fd)
{
	__u32 handle;
	int ret = fd_to_handle(w->drm, fd, &handle);

	if (!ret)
		close_handle(w->drm, handle);

	return ret;
}

DEFINE_RACY_OP(op_racy_prime, RACY_IMPORT)

/*
 * Threads
 */

static const struct op {
	const char *name;
	int (*run)(struct worker *w, int arg);
	int arg;
	int weight;
	int needs;	/* one bit for each */
} ops[] = {
	{ "create system heap", op_create, SYSTEM_HEAP, 3, 1 << SYSTEM_HEAP },
	{ "create udmabuf", op_create, UDMABUF, 3, 1 << UDMABUF },
	{ "create vgem", op_create, VGEM, 3, 1 << VGEM },
	{ "create Rust sample", op_create, RUST_SAMPLE, 3, 1 << RUST_SAMPLE },
	{ "write", op_write, 0, 8, 0 },
	{ "check", op_check, 0, 10, 0 },
	{ "name", op_name, 0, 8, 0 },
	{ "fdinfo", op_fdinfo, 0, 4, 0 },
	{ "maps", op_maps, 0, 2, 0 },
	{ "bufinfo", op_bufinfo, 0, 3, 1 << BUFFER_LIST },
	{ "lseek", op_seek, 0, 4, 0 },
	{ "fstat", op_stat, 0, 4, 0 },
	{ "dup", op_dup, 0, 5, 0 },
	{ "sum", op_sum, 0, 6, 1 << RUST_SAMPLE },
	{ "prime", op_prime, 0, 6, 1 << VGEM },
	{ "import fence", op_import, 0, 8, 0 },
	{ "export fence", op_export, 0, 6, 0 },
	{ "poll now", op_poll, 0, 8, 0 },
	{ "poll briefly", op_poll, 10, 6, 0 },
	{ "poll until ready", op_poll_wait, 0, 4, 0 },
	{ "epoll", op_epoll, 0, 5, 0 },
	{ "epoll of the last", op_epoll_last, 0, 4, 0 },
	{ "mmap of the last", op_map_last, 0, 4, 0 },
	{ "send", op_send, 0, 6, 0 },
	{ "send the last", op_send_last, 0, 4, 0 },
	{ "send and lose", op_send_lost, 0, 3, 0 },
	{ "racy create", op_racy_create, 0, 10, 0 },
	{ "racy close", op_racy_close, 0, 4, 0 },
	{ "racy dup", op_racy_dup, 0, 6, 0 },
	{ "racy name", op_racy_name, 0, 6, 0 },
	{ "racy sync", op_racy_sync, 0, 8, 0 },
	{ "racy poll", op_racy_poll, 0, 8, 0 },
	{ "racy epoll", op_racy_epoll, 0, 8, 0 },
	{ "racy export fence", op_racy_export, 0, 5, 0 },
	{ "racy import fence", op_racy_import, 0, 8, 0 },
	{ "racy mmap", op_racy_map, 0, 6, 0 },
	{ "racy prime", op_racy_prime, 0, 6, 1 << VGEM },
	{ "racy fstat", op_racy_stat, 0, 4, 0 },
	{ "racy sum", op_racy_sum, 0, 6, 1 << RUST_SAMPLE },
	{ "racy fdinfo", op_racy_fdinfo, 0, 4, 0 },
};

static_assert(ARRAY_SIZE(ops) <= MAX_OPS, "more operations than counters");

static int total_weight;

static bool can_run(const struct op *op)
{
	int need;

	for (need = 0; need < NUM_NEEDS; need++) {
		if (op->needs & (1 << need) && !have(need))
			return false;
	}

	return true;
}

static int any_op(struct worker *w)
{
	int left = below(w, total_weight);
	size_t i;

	for (i = 0; i < ARRAY_SIZE(ops) - 1; i++) {
		if (!can_run(&ops[i]))
			continue;
		left -= ops[i].weight;
		if (left < 0)
			break;
	}

	return i;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct counts *counts;
	int i, ret;

	atomic_store(&w->tid, syscall(SYS_gettid));
	while (!atomic_load(&stop)) {
		i = any_op(w);
		atomic_store(&w->op, i);
		ret = ops[i].run(w, ops[i].arg);
		atomic_fetch_add(&w->progress, 1);
		counts = &w->counts[i];
		if (!ret) {
			counts->done++;
		} else if (ret < 0) {
			counts->failed++;
			counts->error = -ret;
		}
	}
	atomic_store(&w->ended, true);

	return NULL;
}

static void advance(struct timeline *line, unsigned int target)
{
	__u32 by = target - line->value;
	int i, kept = 0;

	if (by && !do_ioctl(line->fd, SW_SYNC_IOC_INC, &by))
		line->value = target;
	for (i = 0; i < line->num_held; i++) {
		if ((int)(line->held[i].value - line->value) > 0)
			line->held[kept++] = line->held[i];
		else
			close(line->held[i].fd);
	}
	line->num_held = kept;
}

/* All fences signal, a round or two after they were made. */
static void *signal_fences(void *arg)
{
	struct timeline *line;
	int i;

	(void)arg;
	while (!atomic_load(&stop_timelines)) {
		for (i = 0; i < NUM_TIMELINES; i++) {
			line = &timelines[i];
			pthread_mutex_lock(&line->lock);
			advance(line, line->target);
			line->target = line->next;
			pthread_mutex_unlock(&line->lock);
		}
		usleep(3000);
	}

	return NULL;
}

/* What the thread waits for, if the kernel tells. */
static void show_stack(int tid)
{
	char path[64], text[2048], *line, *rest = text;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stack", tid);
	read_text(path, text, sizeof(text));
	while ((line = strsep(&rest, "\n")) && *line)
		say("    %s", line);
}

/* Returns the number of threads that have not ended and have made no progress for too long. */
static int count_stuck(int num_threads, bool *all_ended)
{
	int i, stuck = 0;

	*all_ended = true;
	for (i = 0; i < num_threads; i++) {
		struct worker *w = &workers[i];
		unsigned long progress = atomic_load(&w->progress);

		if (atomic_load(&w->ended))
			continue;
		*all_ended = false;
		if (progress != w->seen) {
			w->seen = progress;
			w->since = now();
		} else if (now() - w->since >= STUCK) {
			say("thread %d is stuck in '%s' for %d s, after %lu operations", i,
			    ops[atomic_load(&w->op)].name, STUCK, progress);
			show_stack(atomic_load(&w->tid));
			stuck++;
		}
	}

	return stuck;
}

/*
 * Start and end
 */

static int open_vgem(void)
{
	char path[32], name[16];
	int i, fd;

	for (i = 0; i < 16; i++) {
		struct drm_version version = { .name = name, .name_len = sizeof(name) - 1 };

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		memset(name, 0, sizeof(name));
		if (!do_ioctl(fd, DRM_IOCTL_VERSION, &version) && !strcmp(name, "vgem"))
			return fd;
		close(fd);
	}
	errno = ENOENT;

	return -1;
}

static void open_devices(void)
{
	int need;

	for (need = 0; need < NUM_NEEDS; need++) {
		if (need == VGEM)
			devices[need] = open_vgem();
		else
			devices[need] = open(need_names[need], need == BUFFER_LIST ?
					     O_RDONLY | O_CLOEXEC : O_RDWR | O_CLOEXEC);
		if (!have(need))
			say("without %s: %s", need_names[need], strerror(errno));
		else if (need < NUM_EXPORTERS)
			exporters[num_exporters++] = need;
	}
}

static void close_devices(void)
{
	int need;

	for (need = 0; need < NUM_NEEDS; need++) {
		if (have(need))
			close(devices[need]);
	}
}

/* The number in the last line of bufinfo: "Total %d objects, ...", or -1. */
static int num_buffers(void)
{
	FILE *f = fopen(BUFINFO, "re");
	char line[256];
	int count = -1;

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		sscanf(line, "Total %d objects", &count);
	fclose(f);

	return count;
}

static int num_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	if (!dir)
		return -1;
	while (readdir(dir))
		count++;
	closedir(dir);

	return count;
}

/* Before there is anything that a child would hold on to. */
static void start_helpers(void)
{
	int i, j, sockets[2];

	fflush(stdout);
	for (i = 0; i < NUM_HELPERS; i++) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
			ksft_exit_fail_perror("socketpair");
		helpers[i].pid = fork();
		if (helpers[i].pid < 0)
			ksft_exit_fail_perror("fork");
		if (!helpers[i].pid) {
			for (j = 0; j < i; j++)
				close(helpers[j].socket);
			close(sockets[0]);
			help(sockets[1]);
			_exit(0);
		}
		close(sockets[1]);
		helpers[i].socket = sockets[0];
		pthread_mutex_init(&helpers[i].lock, NULL);
	}
}

/* Returns whether all have ended by themselves. */
static bool reap_helpers(void)
{
	time_t start = now();
	bool good = true;
	int i, status;
	pid_t pid;

	for (i = 0; i < NUM_HELPERS; i++)
		close(helpers[i].socket);
	for (i = 0; i < NUM_HELPERS; i++) {
		do {
			pid = waitpid(helpers[i].pid, &status, WNOHANG);
			usleep(pid ? 0 : 10000);
		} while (!pid && now() - start < SETTLE);
		if (!pid) {
			kill(helpers[i].pid, SIGKILL);
			say("helper %d does not end", i);
			good = false;
		} else if (pid < 0 || !WIFEXITED(status) || WEXITSTATUS(status)) {
			say("helper %d ended with status %#x", i, status);
			good = false;
		}
	}

	return good;
}

static void start_timelines(pthread_t *thread)
{
	int i;

	for (i = 0; i < NUM_TIMELINES; i++) {
		timelines[i].fd = open(SW_SYNC, O_RDWR | O_CLOEXEC);
		if (timelines[i].fd < 0)
			ksft_exit_fail_perror(SW_SYNC);
		pthread_mutex_init(&timelines[i].lock, NULL);
	}
	if (pthread_create(thread, NULL, signal_fences, NULL))
		ksft_exit_fail_msg("cannot create a thread\n");
}

static void start_workers(int num_threads, uint64_t seed)
{
	int i, k;

	for (i = 0; i < NUM_SLOTS; i++) {
		pthread_rwlock_init(&slots[i].lock, NULL);
		slots[i].buf.fd = -1;
	}
	for (k = 0; k < NUM_KINDS; k++) {
		for (i = 0; i < NUM_RACY; i++)
			atomic_init(&racy[k][i], -1);
	}
	for (i = 0; i < num_threads; i++) {
		struct worker *w = &workers[i];

		w->random = mix(seed + i);
		w->drm = have(VGEM) ? open_vgem() : -1;
		w->text = malloc(BUFINFO_SIZE);
		w->since = now();
		if (!w->text || (have(VGEM) && w->drm < 0))
			ksft_exit_fail_perror("thread");
	}
	for (i = 0; i < num_threads; i++) {
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			ksft_exit_fail_msg("cannot create a thread\n");
	}
}

static void end_workers(int num_threads)
{
	int i, k;

	for (i = 0; i < num_threads; i++) {
		pthread_join(workers[i].thread, NULL);
		if (workers[i].drm >= 0)
			close(workers[i].drm);
		free(workers[i].text);
	}
	for (i = 0; i < NUM_SLOTS; i++) {
		if (slots[i].buf.fd < 0)
			continue;
		check_fd("at the end", slots[i].buf.fd, &slots[i].buf);
		close(slots[i].buf.fd);
	}
	for (k = 0; k < NUM_KINDS; k++) {
		for (i = 0; i < NUM_RACY; i++)
			put_racy(k, i, -1);
	}
}

/* Before they are closed: sw_sync is not good at that with fences that have not signalled. */
static void end_timelines(pthread_t thread)
{
	int i;

	atomic_store(&stop_timelines, true);
	pthread_join(thread, NULL);
	for (i = 0; i < NUM_TIMELINES; i++) {
		advance(&timelines[i], timelines[i].next);
		close(timelines[i].fd);
	}
}

static void add_counts(struct counts *total, size_t op, int num_threads)
{
	int i;

	*total = (struct counts){};
	for (i = 0; i < num_threads; i++) {
		struct counts *counts = &workers[i].counts[op];

		total->done += counts->done;
		total->failed += counts->failed;
		if (counts->error)
			total->error = counts->error;
	}
}

/* Returns the number of operations that could run but never succeeded. */
static int print_counts(int num_threads, double seconds)
{
	struct counts counts, all = {};
	int missing = 0;
	size_t i;

	say("%-20s %10s %10s %10s  %s", "operation", "done", "per s", "failed", "last error");
	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		if (!can_run(&ops[i])) {
			say("%-20s not on this machine", ops[i].name);
			continue;
		}
		add_counts(&counts, i, num_threads);
		say("%-20s %10lu %10.1f %10lu  %s", ops[i].name, counts.done,
		    counts.done / seconds, counts.failed,
		    counts.error ? strerror(counts.error) : "");
		all.done += counts.done;
		all.failed += counts.failed;
		missing += !counts.done;
	}
	say("%-20s %10lu %10.1f %10lu", "all", all.done, all.done / seconds, all.failed);

	return missing;
}

static void __noreturn stuck_at_end(int signal)
{
	static const char text[] = "# stuck at the end\n";

	(void)signal;
	if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
		_exit(KSFT_FAIL);
	_exit(KSFT_FAIL);
}

/* Returns whether there are no more buffers and descriptors than before, soon. */
static bool nothing_leaked(int buffers, int descriptors)
{
	int now_buffers, now_descriptors;
	time_t start = now();

	do {
		now_buffers = num_buffers();
		now_descriptors = num_descriptors();
		if (now_buffers == buffers && now_descriptors == descriptors)
			return true;
		usleep(100000);
	} while (now() - start < SETTLE);
	say("%d buffers and %d descriptors before, %d and %d after", buffers, descriptors,
	    now_buffers, now_descriptors);

	return false;
}

static long number_argument(const char *text, long min, long max)
{
	char *end;
	long value = strtol(text, &end, 0);

	if (end == text || *end || value < min || value > max)
		ksft_exit_fail_msg("'%s' is not a number from %ld to %ld\n", text, min, max);

	return value;
}

int main(int argc, char **argv)
{
	long seconds = 10, num_threads = 4, seed = (time(NULL) ^ getpid()) & INT32_MAX;
	int buffers, descriptors, opt, stuck, missing;
	struct rlimit limit;
	pthread_t timeline_thread;
	bool all_ended, reaped, clean;
	time_t start, end;
	size_t i;

	ksft_print_header();
	while ((opt = getopt(argc, argv, "t:j:s:")) != -1) {
		switch (opt) {
		case 't':
			seconds = number_argument(optarg, 1, 1000000);
			break;
		case 'j':
			num_threads = number_argument(optarg, 1, MAX_THREADS);
			break;
		case 's':
			seed = number_argument(optarg, 0, INT32_MAX);
			break;
		default:
			ksft_exit_fail_msg("usage: %s [-t SECONDS] [-j THREADS] [-s SEED]\n",
					   argv[0]);
		}
	}

	page_size = sysconf(_SC_PAGESIZE);
	signal(SIGPIPE, SIG_IGN);
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < 1024) {
		limit.rlim_cur = 1024;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	buffers = num_buffers();
	descriptors = num_descriptors();
	start_helpers();
	open_devices();
	if (!num_exporters)
		ksft_exit_skip("no exporter: %s, %s, %s or %s\n", need_names[SYSTEM_HEAP],
			       need_names[UDMABUF], need_names[VGEM], need_names[RUST_SAMPLE]);
	ksft_set_plan(4);
	say("%ld threads for %ld s, seed %ld", num_threads, seconds, seed);

	if (have(FENCES))
		start_timelines(&timeline_thread);
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		total_weight += can_run(&ops[i]) ? ops[i].weight : 0;
	start = now();
	start_workers(num_threads, seed);
	do {
		usleep(200000);
		if (now() - start >= seconds)
			atomic_store(&stop, true);
		stuck = count_stuck(num_threads, &all_ended);
	} while (!stuck && !all_ended);
	end = now();

	missing = print_counts(num_threads, end > start ? end - start : 1);
	signal(SIGALRM, stuck_at_end);
	alarm(2 * STUCK);
	if (stuck) {
		/* They cannot be waited for, and hold what would have to be checked. */
		ksft_test_result(!atomic_load(&num_mismatches), "contents\n");
		ksft_test_result_fail("progress\n");
		ksft_test_result_skip("nothing leaked: a thread is stuck\n");
		ksft_test_result_skip("every operation ran: a thread is stuck\n");
		if (have(FENCES))
			end_timelines(timeline_thread);
		ksft_finished();
	}
	end_workers(num_threads);
	if (have(FENCES))
		end_timelines(timeline_thread);
	reaped = reap_helpers();
	close_devices();
	clean = nothing_leaked(buffers, descriptors);

	ksft_test_result(!atomic_load(&num_mismatches), "contents\n");
	ksft_test_result(!atomic_load(&num_late) && reaped, "progress\n");
	if (clean && buffers < 0)
		ksft_test_result_skip("nothing leaked: no " BUFINFO "\n");
	else
		ksft_test_result(clean, "nothing leaked\n");
	if (seconds < EVERY_OP)
		ksft_test_result_skip("every operation ran: not in %ld s\n", seconds);
	else
		ksft_test_result(!missing, "every operation ran\n");
	ksft_finished();
}
