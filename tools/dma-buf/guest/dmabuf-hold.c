// SPDX-License-Identifier: GPL-2.0
/*
 * Makes a dma-buf, shows what the kernel tells of it, and holds it for some seconds.
 *
 * dmabuf-hold (--heap /dev/dma_heap/NAME | --drm DRIVER) [--name TEXT] [--hold SECONDS]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>

static void fail(const char *what)
{
	fprintf(stderr, "dmabuf-hold: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int from_heap(const char *heap)
{
	struct dma_heap_allocation_data data = {
		.len = 4096,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	int fd = open(heap, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail(heap);
	if (ioctl(fd, DMA_HEAP_IOCTL_ALLOC, &data))
		fail("DMA_HEAP_IOCTL_ALLOC");
	close(fd);
	return data.fd;
}

static int open_drm(const char *driver)
{
	for (int i = 0; i < 16; i++) {
		char path[32], name[32] = "";
		struct drm_version version = { .name = name, .name_len = sizeof(name) - 1 };
		int fd;

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!ioctl(fd, DRM_IOCTL_VERSION, &version) && !strcmp(name, driver))
			return fd;
		close(fd);
	}
	errno = ENODEV;
	fail(driver);
	return -1;
}

static int from_drm(const char *driver)
{
	struct drm_mode_create_dumb dumb = { .width = 32, .height = 32, .bpp = 32 };
	struct drm_prime_handle prime = { .flags = DRM_CLOEXEC | DRM_RDWR };
	int fd = open_drm(driver);

	if (ioctl(fd, DRM_IOCTL_MODE_CREATE_DUMB, &dumb))
		fail("DRM_IOCTL_MODE_CREATE_DUMB");
	prime.handle = dumb.handle;
	if (ioctl(fd, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime))
		fail("DRM_IOCTL_PRIME_HANDLE_TO_FD");
	/* From here on only the buffer keeps the driver. */
	close(fd);
	return prime.fd;
}

static void show(const char *path, const char *only)
{
	char line[512];
	FILE *f = fopen(path, "r");

	if (!f)
		fail(path);
	while (fgets(line, sizeof(line), f))
		if (!only || strstr(line, only))
			fputs(line, stdout);
	fclose(f);
}

int main(int argc, char **argv)
{
	int fd = -1, hold = 0;
	char path[64];

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--heap"))
			fd = from_heap(argv[i + 1]);
		else if (!strcmp(argv[i], "--drm"))
			fd = from_drm(argv[i + 1]);
		else if (!strcmp(argv[i], "--hold"))
			hold = atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--name") && fd >= 0) {
			if (ioctl(fd, DMA_BUF_SET_NAME_B, (__u64)(unsigned long)argv[i + 1]))
				fail("DMA_BUF_SET_NAME");
		} else
			fd = -2;
		if (fd < 0)
			break;
	}
	if (fd < 0) {
		fprintf(stderr, "usage: dmabuf-hold (--heap PATH | --drm DRIVER) [--name TEXT] [--hold SECONDS]\n");
		return 2;
	}
	if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED)
		fail("mmap");

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	show(path, NULL);
	show("/proc/self/maps", "/dmabuf:");
	fflush(stdout);
	sleep(hold);
	return 0;
}
