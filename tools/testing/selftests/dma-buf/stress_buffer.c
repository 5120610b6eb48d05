// SPDX-License-Identifier: GPL-2.0
/*
 * For dmabuf_stress.c: exporters, the contents of their buffers, and small things.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <time.h>

#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <linux/dma-heap.h>
#include <linux/sync_file.h>
#include <linux/udmabuf.h>

#include "stress.h"

#define MAX_PAGES	8

const char * const need_names[NUM_NEEDS] = {
	[SYSTEM_HEAP] = "/dev/dma_heap/system",
	[UDMABUF] = "/dev/udmabuf",
	[VGEM] = "/dev/dri/card* of vgem",
	[RUST_SAMPLE] = "/dev/rust-dma-buf",
	[FENCES] = SW_SYNC,
	[BUFFER_LIST] = BUFINFO,
};

long page_size;
int devices[NUM_NEEDS];
int num_exporters;
atomic_int num_mismatches, num_late;

static int exporters[NUM_EXPORTERS];
static atomic_uint last_id;

/*
 * Small things
 */

uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;

	return x ^ (x >> 31);
}

/* A number below n. */
unsigned int below(struct worker *w, unsigned int n)
{
	w->random++;

	return mix(w->random) % n;
}

/* Seconds. */
double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);

	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* One line of output, in one piece. */
void __printf(1, 2) say(const char *format, ...)
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

/* What an ioctl returns, or -errno. */
int do_ioctl(int fd, unsigned long cmd, void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

/* Returns 0 or -errno, also if not all of it fits. */
int read_text(const char *path, char *text, size_t size)
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

int cpu_access(int fd, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return do_ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
}

/* The events, of those asked for, that there are in time, or -errno. */
int wait_for(int fd, short events, int milliseconds)
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

void close_handle(int drm, __u32 handle)
{
	struct drm_gem_close arg = { .handle = handle };

	do_ioctl(drm, DRM_IOCTL_GEM_CLOSE, &arg);
}

/* The descriptor of a buffer, or -errno. */
int handle_to_fd(int drm, __u32 handle)
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

int alloc_buffer(struct worker *w, int exporter, size_t size)
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

int any_exporter(struct worker *w)
{
	return exporters[below(w, num_exporters)];
}

int fd_to_handle(int drm, int fd, __u32 *handle)
{
	struct drm_prime_handle prime = { .fd = fd };
	int ret = do_ioctl(drm, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime);

	*handle = prime.handle;

	return ret;
}

/* The sum of the bytes, by the sample. */
int sum(int fd, uint64_t *result)
{
	__u64 arg = fd;
	int ret = do_ioctl(devices[RUST_SAMPLE], RUST_DMA_BUF_SUM, &arg);

	*result = arg;

	return ret;
}

int open_vgem(void)
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

void open_devices(void)
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

void close_devices(void)
{
	int need;

	for (need = 0; need < NUM_NEEDS; need++) {
		if (have(need))
			close(devices[need]);
	}
}

/*
 * Contents
 */

static uint64_t word_of(const struct buffer *buf, size_t i)
{
	return mix(((uint64_t)buf->id << 40) ^ ((uint64_t)buf->generation << 16) ^ i);
}

uint64_t sum_of(const struct buffer *buf)
{
	uint64_t word, sum = 0;
	size_t i;

	for (i = 0; i < buf->size / sizeof(word); i++) {
		for (word = word_of(buf, i); word; word >>= 8)
			sum += word & 0xff;
	}

	return sum;
}

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

void report_difference(const char *where, const struct buffer *buf,
		       const struct difference *diff)
{
	mismatch("%s: buffer %u of %s, generation %u: at %#llx of %#zx: expected %llx, found %llx",
		 where, buf->id, need_names[buf->exporter], buf->generation,
		 (unsigned long long)diff->offset, buf->size, (unsigned long long)diff->expected,
		 (unsigned long long)diff->found);
}

void check_map(const char *where, const void *map, const struct buffer *buf)
{
	struct difference diff;

	if (differs(map, buf, &diff))
		report_difference(where, buf, &diff);
}

/* Look at the contents through a descriptor. Returns 0 or -errno, whatever they are. */
int find_difference(int fd, const struct buffer *buf, struct difference *diff, bool *found)
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

int check_fd(const char *where, int fd, const struct buffer *buf)
{
	struct difference diff;
	bool found;
	int ret;

	ret = find_difference(fd, buf, &diff, &found);
	if (found)
		report_difference(where, buf, &diff);

	return ret;
}

int export_sync_file(int fd, __u32 flags)
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
int write_contents(struct buffer *buf)
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

int create_buffer(struct worker *w, struct buffer *buf, int exporter)
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
