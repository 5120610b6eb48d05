// SPDX-License-Identifier: GPL-2.0
/*
 * For dmabuf_stress.c: buffers with a lock and known contents, and most of what is done with them.
 */
#define _GNU_SOURCE
#include <sys/ioctl.h>

#include <drm/drm.h>
#include <drm/drm_mode.h>

#include "stress.h"

#define NUM_SLOTS	12

struct slot {
	pthread_rwlock_t lock;
	struct buffer buf;		/* none if the descriptor is -1 */
};

static struct slot slots[NUM_SLOTS];

void init_shared(void)
{
	int i;

	for (i = 0; i < NUM_SLOTS; i++) {
		pthread_rwlock_init(&slots[i].lock, NULL);
		slots[i].buf.fd = -1;
	}
}

/* When nobody uses them any more. */
void close_shared(void)
{
	int i;

	for (i = 0; i < NUM_SLOTS; i++) {
		if (slots[i].buf.fd < 0)
			continue;
		check_fd("at the end", slots[i].buf.fd, &slots[i].buf);
		close(slots[i].buf.fd);
	}
}

/* Nobody waits for a lock: there are others. */
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

int op_create(struct worker *w, int exporter)
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
int with_shared(struct worker *w, bool write, shared_op_fn *use, int arg)
{
	struct slot *slot;
	struct buffer *buf = lock_any(w, write, &slot);
	int ret;

	if (!buf)
		return NOTHING;
	ret = use(w, buf, arg);
	pthread_rwlock_unlock(&slot->lock);

	return ret;
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
size_t random_name(struct worker *w, char *name, size_t max)
{
	size_t i, len = below(w, max + 1);

	for (i = 0; i < len; i++)
		name[i] = below(w, 16) ? 'a' + (int)below(w, 26) : '\n';
	name[len] = '\0';

	return len;
}

int set_name(struct worker *w, int fd, const void *name)
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
