// SPDX-License-Identifier: GPL-2.0
/*
 * What the dma-buf core tells about a buffer: names, fdinfo, maps, bufinfo and trace events.
 *
 * Nothing else may make or close buffers meanwhile: some tests count those of an exporter, or read
 * the list of all buffers twice.
 */

#define _GNU_SOURCE
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/sysmacros.h>

#include "dmabuf.h"

/*
 * Symbols of the kernel
 */

enum { BOTH_CORES, RUST_CORE, ANY_DATA, BUFFER_LIST, FILE_OPERATIONS, NUM_SYMBOLS };

static const char * const symbols[NUM_SYMBOLS] = {
	[BOTH_CORES] = " dma_buf_export\n",
	[RUST_CORE] = " dma_buf_rust_init\n",
	[ANY_DATA] = " init_task\n",
	[BUFFER_LIST] = " dmabuf_list\n",
	[FILE_OPERATIONS] = " dma_buf_fops\n",
};

static bool have_symbol[NUM_SYMBOLS];

/* For all tests at once: it takes a while. */
static void __attribute__((constructor)) find_symbols(void)
{
	FILE *kallsyms = fopen("/proc/kallsyms", "re");
	char line[1024], *name;
	int i;

	if (!kallsyms)
		return;
	while (fgets(line, sizeof(line), kallsyms)) {
		name = strrchr(line, ' ');
		for (i = 0; name && i < NUM_SYMBOLS; i++)
			have_symbol[i] |= !strcmp(name, symbols[i]);
	}
	fclose(kallsyms);
}

/*
 * How fdinfo and bufinfo show a newline in a name. The core in C makes a new line of it, and the
 * one in Rust does not: this is on purpose, and documented. If nobody knows which one it is, both
 * have to show the same.
 */
static const char *shown_newline(const struct buffer *buf)
{
	if (have_symbol[RUST_CORE])
		return "\\012";
	if (have_symbol[BOTH_CORES])
		return "\n";

	return strstr(read_fdinfo(buf->fd), "\\012") ? "\\012" : "\n";
}

/* What programs look for that read the buffers of a crashed kernel. */
TEST(symbols_for_crash_dumps)
{
	if (!have_symbol[ANY_DATA])
		SKIP(return, "needs CONFIG_KALLSYMS_ALL");
	EXPECT_TRUE(have_symbol[BUFFER_LIST]);
	EXPECT_TRUE(have_symbol[FILE_OPERATIONS]);
}

FIXTURE(text) {
	struct buffer buf;
};

EXPORTER_VARIANTS(text);

FIXTURE_SETUP(text)
{
	setup_buffer(_metadata, &self->buf, variant->exporter);
}

FIXTURE_TEARDOWN(text)
{
	teardown_buffer(&self->buf);
}

TEST_F(text, fdinfo)
{
	EXPECT_STREQ(expected_fdinfo(&self->buf, NULL), read_fdinfo(self->buf.fd));
}

/* All of fdinfo: the lines of all files first, then those of the buffer. */
TEST_F(text, fdinfo_whole)
{
	char path[64], expected[512], seen[512];
	struct statx stx = {};
	int i, fd = self->buf.fd;

	ASSERT_EQ(0, set_name(fd, "frame"));
	ASSERT_EQ(0, statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &stx));
	ASSERT_EQ(STATX_MNT_ID, stx.stx_mask & STATX_MNT_ID);
	for (i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
		snprintf(expected, sizeof(expected),
			 "pos:\t0\nflags:\t0%o\nmnt_id:\t%llu\nino:\t%llu\n"
			 "size:\t%zu\ncount:\t1\nexp_name:\t%s\nname:\tframe\n",
			 O_RDWR | (i ? 0 : O_CLOEXEC), (unsigned long long)stx.stx_mnt_id,
			 inode_of(fd), self->buf.size, self->buf.exporter->exp_name);
		ASSERT_TRUE(read_text(path, seen, sizeof(seen)));
		EXPECT_STREQ(expected, seen);

		/* Finding out the size does not move the position. */
		EXPECT_EQ(self->buf.size, lseek(fd, 0, SEEK_END));
		ASSERT_EQ(0, fcntl(fd, F_SETFD, 0));
	}
}

/* The lines of the buffer stay last. */
TEST_F(text, fdinfo_locked)
{
	ASSERT_EQ(0, flock(self->buf.fd, LOCK_EX));
	EXPECT_STREQ(expected_fdinfo(&self->buf, NULL), read_fdinfo(self->buf.fd));
}

/* What root or the same user sees of another process. */
TEST_F(text, fdinfo_of_child)
{
	char path[64], expected[512], seen[512], *own;
	int pipes[2];
	pid_t child;

	ASSERT_EQ(0, pipe2(pipes, O_CLOEXEC));
	child = fork_child();
	ASSERT_GE(child, 0);
	if (!child) {
		char byte;

		close(pipes[1]);
		_exit(read(pipes[0], &byte, 1) != 0);
	}
	ASSERT_TRUE(child_sleeps(child));
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", child, self->buf.fd);
	ASSERT_TRUE(read_text(path, seen, sizeof(seen)));
	own = strstr(seen, "size:\t");
	ASSERT_NE(NULL, own);
	snprintf(expected, sizeof(expected), "size:\t%zu\ncount:\t2\nexp_name:\t%s\n",
		 self->buf.size, self->buf.exporter->exp_name);
	EXPECT_STREQ(expected, own);
	close(pipes[1]);
	close(pipes[0]);
	EXPECT_TRUE(child_succeeds(child));
}

TEST_F(text, fdinfo_count)
{
	void *addr;
	int fd;

	fd = dup(self->buf.fd);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(2, fdinfo_count(self->buf.fd));
	addr = map(fd, self->buf.size);
	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_EQ(3, fdinfo_count(self->buf.fd));
	close(fd);
	EXPECT_EQ(2, fdinfo_count(self->buf.fd));
	munmap(addr, self->buf.size);
	EXPECT_EQ(1, fdinfo_count(self->buf.fd));
}

TEST_F(text, name_length)
{
	static const unsigned long cmds[] = { DMA_BUF_SET_NAME_A, DMA_BUF_SET_NAME_B };
	char name[DMA_BUF_NAME_LEN + 1];
	int i;

	for (i = 0; i < ARRAY_SIZE(cmds); i++) {
		memset(name, 'a' + i, sizeof(name));
		name[DMA_BUF_NAME_LEN] = '\0';
		EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, cmds[i], name));
		name[DMA_BUF_NAME_LEN - 1] = '\0';
		EXPECT_EQ(0, do_ioctl(self->buf.fd, cmds[i], name));
		EXPECT_STREQ(expected_fdinfo(&self->buf, name), read_fdinfo(self->buf.fd));
	}
}

TEST_F(text, name_survives_errors)
{
	char name[DMA_BUF_NAME_LEN + 1] = {};

	memset(name, 'x', DMA_BUF_NAME_LEN);
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_A, name));
	EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_B, name));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_A, BAD_PTR));
	EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, DMA_BUF_SET_NAME_B, BAD_PTR));
	EXPECT_STREQ(expected_fdinfo(&self->buf, "frame"), read_fdinfo(self->buf.fd));
}

TEST_F(text, name_shows)
{
	void *addr = map(self->buf.fd, self->buf.size);

	ASSERT_NE(MAP_FAILED, addr);
	EXPECT_STREQ("/dmabuf:", fd_link(self->buf.fd));
	EXPECT_STREQ("/dmabuf:", maps_path(addr));

	ASSERT_EQ(0, set_name(self->buf.fd, "first"));
	EXPECT_STREQ("/dmabuf:first", fd_link(self->buf.fd));
	EXPECT_STREQ("/dmabuf:first", maps_path(addr));

	ASSERT_EQ(0, set_name(self->buf.fd, "the second"));
	EXPECT_STREQ("/dmabuf:the second", fd_link(self->buf.fd));
	EXPECT_STREQ("/dmabuf:the second", maps_path(addr));

	munmap(addr, self->buf.size);
	EXPECT_STREQ(expected_fdinfo(&self->buf, "the second"), read_fdinfo(self->buf.fd));
}

TEST_F(text, name_empty)
{
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	ASSERT_EQ(0, set_name(self->buf.fd, ""));
	EXPECT_STREQ(expected_fdinfo(&self->buf, ""), read_fdinfo(self->buf.fd));
	EXPECT_STREQ("/dmabuf:", fd_link(self->buf.fd));
}

/* A name is bytes, and all but a newline are shown as they are. */
TEST_F(text, name_bytes)
{
	char name[DMA_BUF_NAME_LEN], path[64];
	void *addr;
	int byte, i;

	for (byte = 1; byte < 256; byte += i) {
		for (i = 0; i < DMA_BUF_NAME_LEN - 1 && byte + i < 256; i++)
			name[i] = byte + i == '\n' ? '-' : byte + i;
		name[i] = '\0';
		ASSERT_EQ(0, set_name(self->buf.fd, name));
		EXPECT_STREQ(expected_fdinfo(&self->buf, name), read_fdinfo(self->buf.fd));
		snprintf(path, sizeof(path), "/dmabuf:%s", name);
		EXPECT_STREQ(path, fd_link(self->buf.fd));
		addr = map(self->buf.fd, self->buf.size);
		ASSERT_NE(MAP_FAILED, addr);
		EXPECT_STREQ(path, maps_path(addr));
		munmap(addr, self->buf.size);
	}
}

/* In maps a newline is never one. */
TEST_F(text, name_newline)
{
	void *addr = map(self->buf.fd, self->buf.size);
	char name[64];
	const char *newline;

	ASSERT_NE(MAP_FAILED, addr);
	ASSERT_EQ(0, set_name(self->buf.fd, "a\n\tb \\ c\n"));
	EXPECT_STREQ("/dmabuf:a\n\tb \\ c\n", fd_link(self->buf.fd));
	EXPECT_STREQ("/dmabuf:a\\012\tb \\ c\\012", maps_path(addr));
	munmap(addr, self->buf.size);

	newline = shown_newline(&self->buf);
	snprintf(name, sizeof(name), "a%s\tb \\ c%s", newline, newline);
	EXPECT_STREQ(expected_fdinfo(&self->buf, name), read_fdinfo(self->buf.fd));
}

/* As much as there may be of a name is in memory, and what follows is not. */
TEST_F(text, name_at_end_of_page)
{
	static const unsigned long cmds[] = { DMA_BUF_SET_NAME_A, DMA_BUF_SET_NAME_B };
	size_t page = getpagesize();
	char *pages, *end;
	int i, len;

	pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, pages);
	end = pages + page;
	ASSERT_EQ(0, mprotect(end, page, PROT_NONE));
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));

	for (i = 0; i < ARRAY_SIZE(cmds); i++) {
		memset(pages, 'x', page);
		for (len = 0; len < DMA_BUF_NAME_LEN; len++)
			EXPECT_EQ(-EFAULT, do_ioctl(self->buf.fd, cmds[i], end - len));
		for (; len < 2 * DMA_BUF_NAME_LEN; len++)
			EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, cmds[i], end - len));
		EXPECT_STREQ("/dmabuf:frame", fd_link(self->buf.fd));

		end[-1] = '\0';
		EXPECT_EQ(-EINVAL, do_ioctl(self->buf.fd, cmds[i], end - DMA_BUF_NAME_LEN - 1));
		EXPECT_EQ(0, do_ioctl(self->buf.fd, cmds[i], end - DMA_BUF_NAME_LEN));
		EXPECT_STREQ("/dmabuf:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", fd_link(self->buf.fd));
		EXPECT_EQ(0, do_ioctl(self->buf.fd, cmds[i], end - 1));
		EXPECT_STREQ("/dmabuf:", fd_link(self->buf.fd));
		ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	}
	munmap(pages, 2 * page);
}

/* Whoever has a descriptor, all see the same name. */
TEST_F(text, name_from_child)
{
	int fd = dup(self->buf.fd);
	pid_t child;

	ASSERT_GE(fd, 0);
	child = fork_child();
	ASSERT_GE(child, 0);
	if (!child)
		_exit(set_name(self->buf.fd, "child's") != 0);
	EXPECT_TRUE(child_succeeds(child));
	EXPECT_STREQ("/dmabuf:child's", fd_link(fd));
	close(fd);
	EXPECT_STREQ(expected_fdinfo(&self->buf, "child's"), read_fdinfo(self->buf.fd));
}

/* Also if that is another user's. */
TEST_F(text, name_from_other_user)
{
	pid_t child;

	if (geteuid())
		SKIP(return, "needs root");
	child = fork_child();
	ASSERT_GE(child, 0);
	if (!child)
		_exit(setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
		      set_name(self->buf.fd, "other's"));
	EXPECT_TRUE(child_succeeds(child));
	EXPECT_STREQ("/dmabuf:other's", fd_link(self->buf.fd));
	EXPECT_STREQ(expected_fdinfo(&self->buf, "other's"), read_fdinfo(self->buf.fd));
}

/* The line of a mapping but for its addresses and the device's number. */
TEST_F(text, maps_line)
{
	unsigned int page = getpagesize(), major, minor;
	char line[512], expected[256], perms[8];
	unsigned long long offset, ino;
	unsigned long start, end;
	struct stat st;
	bool found = false;
	int path = 0;
	void *addr;
	FILE *maps;

	addr = mmap(NULL, page, PROT_READ, MAP_SHARED, self->buf.fd, page);
	ASSERT_NE(MAP_FAILED, addr);
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	ASSERT_EQ(0, fstat(self->buf.fd, &st));
	maps = fopen("/proc/self/maps", "re");
	ASSERT_NE(NULL, maps);
	while (!found && fgets(line, sizeof(line), maps)) {
		found = sscanf(line, "%lx-%lx %7s %llx %x:%x %llu %n", &start, &end, perms,
			       &offset, &major, &minor, &ino, &path) == 7 &&
			start == (unsigned long)addr;
	}
	fclose(maps);
	ASSERT_TRUE(found);
	EXPECT_EQ(page, end - start);
	EXPECT_STREQ("r--s", perms);
	/* vgem counts from the start of its device's address space. */
	if (self->buf.exporter->maps_parts)
		EXPECT_EQ(page, offset);
	EXPECT_EQ(st.st_dev, makedev(major, minor));
	EXPECT_EQ(st.st_ino, ino);
	snprintf(expected, sizeof(expected), "/dmabuf:frame\n");
	EXPECT_STREQ(expected, line + path);
	munmap(addr, page);
}

TEST_F(text, map_files)
{
	unsigned char *addr = map(self->buf.fd, self->buf.size);
	char path[96], target[128] = {};

	ASSERT_NE(MAP_FAILED, addr);
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (unsigned long)addr,
		 (unsigned long)addr + self->buf.size);
	ASSERT_LT(0, readlink(path, target, sizeof(target) - 1));
	EXPECT_STREQ("/dmabuf:frame", target);
	/* Following the link takes a capability, and then it leads nowhere. */
	EXPECT_EQ(-1, open(path, O_RDWR | O_CLOEXEC));
	EXPECT_EQ(geteuid() ? EPERM : ENXIO, errno);
	munmap(addr, self->buf.size);
}

FIXTURE(bufinfo) {
	struct buffer buf;
};

EXPORTER_VARIANTS(bufinfo);

FIXTURE_SETUP(bufinfo)
{
	if (access(BUFINFO, R_OK))
		SKIP(return, BUFINFO ": %s", strerror(errno));
	setup_buffer(_metadata, &self->buf, variant->exporter);
}

FIXTURE_TEARDOWN(bufinfo)
{
	teardown_buffer(&self->buf);
}

TEST_F(bufinfo, header)
{
	static const char header[] = "\nDma-buf Objects:\n"
		"size    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n";

	ASSERT_TRUE(read_bufinfo());
	EXPECT_TRUE(starts_with(bufinfo, header));
}

/* Check the row of the buffer, and what follows it. */
static void expect_row(struct __test_metadata *_metadata, const struct buffer *buf,
		       long count, const char *name)
{
	char expected[512], seen[512];
	struct bufinfo_row row;

	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(buf->fd), &row));
	/* Of the mode, only that the file is open for reading and writing is ABI. */
	EXPECT_EQ(3, row.mode & 3);
	snprintf(expected, sizeof(expected),
		 "%08zu\t%08x\t%08x\t%08ld\t%s\t%08llu\t%s\n"
		 "\tAttached Devices:\n"
		 "Total 0 devices attached\n"
		 "\n",
		 buf->size, fcntl(buf->fd, F_GETFL), row.mode, count,
		 buf->exporter->exp_name, inode_of(buf->fd), name);
	snprintf(seen, sizeof(seen), "%.*s", (int)strlen(expected), row.text);
	EXPECT_STREQ(expected, seen);
}

TEST_F(bufinfo, named)
{
	ASSERT_EQ(0, set_name(self->buf.fd, "a frame"));
	expect_row(_metadata, &self->buf, 1, "a frame");
}

TEST_F(bufinfo, unnamed)
{
	expect_row(_metadata, &self->buf, 1, "<none>");
}

TEST_F(bufinfo, empty_name)
{
	ASSERT_EQ(0, set_name(self->buf.fd, ""));
	expect_row(_metadata, &self->buf, 1, "");
}

TEST_F(bufinfo, count)
{
	int fd = dup(self->buf.fd);

	ASSERT_GE(fd, 0);
	expect_row(_metadata, &self->buf, 2, "<none>");
	close(fd);
	expect_row(_metadata, &self->buf, 1, "<none>");
}

TEST_F(bufinfo, newest_first)
{
	struct bufinfo_row older, newer;
	int fd = alloc_another(&self->buf);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, set_name(self->buf.fd, "older"));
	ASSERT_EQ(0, set_name(fd, "newer"));
	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(self->buf.fd), &older));
	ASSERT_TRUE(find_row(inode_of(fd), &newer));
	EXPECT_STREQ("older", older.name);
	EXPECT_STREQ("newer", newer.name);
	EXPECT_LT(newer.text, older.text);
	close(fd);
}

TEST_F(bufinfo, newline_in_name)
{
	char name[64];

	ASSERT_EQ(0, set_name(self->buf.fd, "a\nb"));
	snprintf(name, sizeof(name), "a%sb", shown_newline(&self->buf));
	expect_row(_metadata, &self->buf, 1, name);
}

TEST_F(bufinfo, bytes_in_name)
{
	ASSERT_EQ(0, set_name(self->buf.fd, "a\tb \\ \x1b\x80\xff <none>"));
	expect_row(_metadata, &self->buf, 1, "a\tb \\ \x1b\x80\xff <none>");
}

TEST_F(bufinfo, longest_name)
{
	ASSERT_EQ(0, set_name(self->buf.fd, "0123456789abcdef0123456789abcde"));
	expect_row(_metadata, &self->buf, 1, "0123456789abcdef0123456789abcde");
}

TEST_F(bufinfo, file_flags)
{
	ASSERT_EQ(0, fcntl(self->buf.fd, F_SETFL, O_NONBLOCK | O_APPEND));
	expect_row(_metadata, &self->buf, 1, "<none>");
	EXPECT_EQ(O_RDWR | O_NONBLOCK | O_APPEND, fcntl(self->buf.fd, F_GETFL));
}

TEST_F(bufinfo, mapped)
{
	void *addr = map(self->buf.fd, self->buf.size);

	ASSERT_NE(MAP_FAILED, addr);
	expect_row(_metadata, &self->buf, 2, "<none>");
	munmap(addr, self->buf.size);
	expect_row(_metadata, &self->buf, 1, "<none>");
}

/* 1 or 0, or -1 if that cannot be read. */
static int is_listed(unsigned long long ino)
{
	struct bufinfo_row row;

	return read_bufinfo() ? find_row(ino, &row) : -1;
}

/* A mapping and a message keep a buffer, too. */
TEST_F(bufinfo, mapped_and_closed)
{
	unsigned long long ino = inode_of(self->buf.fd);
	void *addr = map(self->buf.fd, self->buf.size);

	ASSERT_NE(MAP_FAILED, addr);
	close(self->buf.fd);
	self->buf.fd = -1;
	EXPECT_EQ(1, is_listed(ino));
	munmap(addr, self->buf.size);
	EXPECT_EQ(0, is_listed(ino));
}

TEST_F(bufinfo, in_flight)
{
	unsigned long long ino = inode_of(self->buf.fd);
	int socks[2];

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks));
	ASSERT_TRUE(send_fd(socks[1], self->buf.fd, ino));
	close(self->buf.fd);
	EXPECT_EQ(1, is_listed(ino));
	self->buf.fd = receive_fd(socks[0], &ino);
	ASSERT_GE(self->buf.fd, 0);
	expect_row(_metadata, &self->buf, 1, "<none>");

	/* Nobody receives it any more. */
	ASSERT_TRUE(send_fd(socks[1], self->buf.fd, ino));
	close(self->buf.fd);
	self->buf.fd = -1;
	close(socks[0]);
	close(socks[1]);
	EXPECT_EQ(0, is_listed(ino));
}

/* A path descriptor keeps the buffer, but the file is gone from the list. */
TEST_F(bufinfo, path_descriptor)
{
	unsigned long long ino = inode_of(self->buf.fd);
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->buf.fd);
	fd = open(path, O_PATH | O_CLOEXEC);
	ASSERT_GE(fd, 0);
	expect_row(_metadata, &self->buf, 1, "<none>");
	close(self->buf.fd);
	self->buf.fd = -1;
	EXPECT_EQ(0, is_listed(ino));
	close(fd);
}

/* What a process had goes when it dies, however it does. */
TEST_F(bufinfo, killed)
{
	unsigned long long ino = 0;
	int pipes[2], status;
	pid_t child;

	ASSERT_EQ(0, pipe2(pipes, O_CLOEXEC));
	child = fork_child();
	ASSERT_GE(child, 0);
	if (!child) {
		int fd = alloc_another(&self->buf);

		map(fd, self->buf.size);
		ino = inode_of(fd);
		if (write(pipes[1], &ino, sizeof(ino)) == sizeof(ino))
			pause();
		_exit(1);
	}
	/* So that the read ends if the child fails. */
	close(pipes[1]);
	ASSERT_EQ(sizeof(ino), read(pipes[0], &ino, sizeof(ino)));
	EXPECT_EQ(1, is_listed(ino));
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(0, is_listed(ino));
	close(pipes[0]);
}

static int count_rows(const char *exp_name)
{
	struct bufinfo_row row;
	const char *line;
	int count = 0;

	if (!read_bufinfo())
		return -1;
	for (line = bufinfo; line; line = next_line(line))
		count += parse_row(line, &row) && !strcmp(row.exp_name, exp_name);

	return count;
}

/* A buffer that could not have a descriptor is not left behind. */
TEST_F(bufinfo, no_free_fd)
{
	int before = count_rows(self->buf.exporter->exp_name);
	struct rlimit limit, lower;
	int fd = dup(self->buf.fd);

	ASSERT_GE(fd, 0);
	close(fd);
	ASSERT_GE(before, 1);
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	lower = limit;
	lower.rlim_cur = fd + self->buf.exporter->fds - 1;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lower));
	EXPECT_EQ(-EMFILE, alloc_another(&self->buf));
	lower.rlim_cur = fd;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lower));
	EXPECT_EQ(-EMFILE, export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));

	EXPECT_EQ(before, count_rows(self->buf.exporter->exp_name));
	expect_row(_metadata, &self->buf, 1, "<none>");
}

/* What follows the row: one line for each device, the latest first. */
static void expect_devices(struct __test_metadata *_metadata, const struct buffer *buf, int count)
{
	char expected[256] = "\tAttached Devices:\n", seen[256], total[64];
	struct bufinfo_row row;
	const char *line;
	int i;

	for (i = 0; i < count; i++)
		strcat(expected, "\tvgem\n");
	snprintf(total, sizeof(total), "Total %d devices attached\n\n", count);
	strcat(expected, total);

	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(buf->fd), &row));
	line = next_line(row.text);
	ASSERT_NE(NULL, line);
	snprintf(seen, sizeof(seen), "%.*s", (int)strlen(expected), line);
	EXPECT_STREQ(expected, seen);
}

TEST_F(bufinfo, attached)
{
	/* A device that gets its own buffer back does not attach to it. */
	bool own = self->buf.exporter == &exporter_vgem;
	__u32 handle, second;
	int a, b;

	a = vgem_open();
	if (a < 0)
		SKIP(return, "vgem: %s", strerror(errno));
	b = vgem_open();
	ASSERT_GE(b, 0);
	ASSERT_EQ(0, vgem_import(a, self->buf.fd, &handle));
	expect_devices(_metadata, &self->buf, own ? 0 : 1);
	/* The same once more is the same import. */
	ASSERT_EQ(0, vgem_import(a, self->buf.fd, &second));
	EXPECT_EQ(handle, second);
	expect_devices(_metadata, &self->buf, own ? 0 : 1);
	ASSERT_EQ(0, vgem_import(b, self->buf.fd, &second));
	expect_devices(_metadata, &self->buf, own ? 0 : 2);
	ASSERT_EQ(0, vgem_close(a, handle));
	expect_devices(_metadata, &self->buf, own ? 0 : 1);
	close(a);
	close(b);
	expect_row(_metadata, &self->buf, 1, "<none>");
}

/* An importer keeps the buffer when nobody else does. */
TEST_F(bufinfo, imported_and_closed)
{
	unsigned long long ino = inode_of(self->buf.fd);
	__u32 handle;
	int vgem = vgem_open();

	if (vgem < 0)
		SKIP(return, "vgem: %s", strerror(errno));
	ASSERT_EQ(0, vgem_import(vgem, self->buf.fd, &handle));
	close(self->buf.fd);
	self->buf.fd = -1;
	EXPECT_EQ(1, is_listed(ino));
	ASSERT_EQ(0, vgem_close(vgem, handle));
	EXPECT_EQ(0, is_listed(ino));
	close(vgem);
}

static bool reads_the_same_slowly(int fd)
{
	ssize_t n = -1;
	size_t len;
	char byte;

	if (!read_bufinfo() || lseek(fd, 0, SEEK_SET))
		return false;
	for (len = 0; (n = read(fd, &byte, 1)) == 1 && byte == bufinfo[len]; len++)
		;

	return !n && !bufinfo[len];
}

/* One byte at a time is the same as all at once. */
TEST_F(bufinfo, read_slowly)
{
	int fd = open(BUFINFO, O_RDONLY | O_CLOEXEC);
	char byte;

	ASSERT_GE(fd, 0);
	/* What has changed in between does not do so again. */
	EXPECT_TRUE(reads_the_same_slowly(fd) || reads_the_same_slowly(fd));
	EXPECT_EQ(0, lseek(fd, 0, SEEK_SET));
	EXPECT_EQ(1, read(fd, &byte, 1));
	EXPECT_EQ('\n', byte);
	close(fd);
}

TEST_F(bufinfo, permissions)
{
	struct stat st;

	ASSERT_EQ(0, stat(BUFINFO, &st));
	EXPECT_EQ(S_IFREG | 0444, st.st_mode);
	EXPECT_EQ(0, st.st_uid);
}

TEST_F(bufinfo, total)
{
	const char *line, *last = NULL;
	struct bufinfo_row row;
	char expected[128];
	size_t bytes = 0;
	int count = 0, another;

	another = alloc_another(&self->buf);
	ASSERT_GE(another, 0);
	ASSERT_TRUE(read_bufinfo());
	for (line = bufinfo; line && *line; line = next_line(line)) {
		last = line;
		if (parse_row(line, &row)) {
			count++;
			bytes += row.size;
		}
	}
	EXPECT_GE(count, 2);
	snprintf(expected, sizeof(expected), "Total %d objects, %zu bytes\n", count, bytes);
	ASSERT_NE(NULL, last);
	EXPECT_STREQ(expected, last);
	close(another);
}

TEST_F(bufinfo, closed)
{
	unsigned long long ino = inode_of(self->buf.fd);
	struct bufinfo_row row;

	close(self->buf.fd);
	self->buf.fd = -1;
	ASSERT_TRUE(read_bufinfo());
	EXPECT_FALSE(find_row(ino, &row));
}

/* One line of a fence. What has signalled has no timeline. */
static int fence_line(char *line, size_t size, const char *usage, unsigned long long context,
		      int seqno, const char *timeline)
{
	return snprintf(line, size, "\t%s fence:%llu:%d %s %s %ssignalled\n", usage, context,
			seqno, timeline ?: "", timeline ? "sw_sync" : "", timeline ? "un" : "");
}

/* The context of the first fence of that usage, which is whatever number was free. */
static unsigned long long fence_context(const struct buffer *buf, const char *usage)
{
	unsigned long long context = 0;
	struct bufinfo_row row;
	char text[32];

	snprintf(text, sizeof(text), "\t%s fence:", usage);
	if (!read_bufinfo() || !find_row(inode_of(buf->fd), &row))
		return 0;
	row.text = strstr(row.text, text);
	if (row.text)
		sscanf(row.text + strlen(text), "%llu:", &context);

	return context;
}

static void expect_fences(struct __test_metadata *_metadata, const struct buffer *buf,
			  const char *expected)
{
	struct bufinfo_row row;
	char seen[512];

	ASSERT_TRUE(read_bufinfo());
	ASSERT_TRUE(find_row(inode_of(buf->fd), &row));
	snprintf(seen, sizeof(seen), "%.*s", (int)strlen(expected), next_line(row.text));
	EXPECT_STREQ(expected, seen);
}

/* In the order in which they came. What has signalled stays until somebody needs its place. */
TEST_F(bufinfo, fences)
{
	char expected[512], comm[16] = {};
	unsigned long long write, read;
	int a, b, len;

	a = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	if (a < 0)
		SKIP(return, SW_SYNC ": %s", strerror(errno));
	b = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	ASSERT_GE(b, 0);
	/* A timeline is called as the task is. */
	ASSERT_EQ(0, prctl(PR_GET_NAME, comm));

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_WRITE, a, 7));
	write = fence_context(&self->buf, "write");
	EXPECT_NE(0, write);
	len = fence_line(expected, sizeof(expected), "write", write, 7, comm);
	snprintf(expected + len, sizeof(expected) - len, "\tAttached Devices:\n");
	expect_fences(_metadata, &self->buf, expected);

	ASSERT_EQ(0, add_fence(self->buf.fd, DMA_BUF_SYNC_READ, b, 1));
	read = fence_context(&self->buf, "read");
	EXPECT_NE(0, read);
	EXPECT_NE(write, read);
	len += fence_line(expected + len, sizeof(expected) - len, "read", read, 1, comm);
	snprintf(expected + len, sizeof(expected) - len, "\tAttached Devices:\n");
	expect_fences(_metadata, &self->buf, expected);

	ASSERT_EQ(0, advance(b));
	len = fence_line(expected, sizeof(expected), "write", write, 7, comm);
	len += fence_line(expected + len, sizeof(expected) - len, "read", read, 1, NULL);
	snprintf(expected + len, sizeof(expected) - len, "\tAttached Devices:\n");
	expect_fences(_metadata, &self->buf, expected);
	close(a);
	close(b);
}

/*
 * Trace events, of this task alone in an instance of the program's own
 */

#define TRACEFS		"/sys/kernel/tracing"

static char instance[64];

/* A test that was killed may still be about to go, and have a file of it open. */
static void remove_instance(void)
{
	int i;

	for (i = 0; !access(instance, F_OK) && rmdir(instance); i++) {
		if (i == TIMEOUT * 10)
			fail_at_exit(instance);
		usleep(100000);
	}
}

static void __attribute__((constructor)) remove_instance_at_exit(void)
{
	snprintf(instance, sizeof(instance), TRACEFS "/instances/dmabuf-%d", getpid());
	atexit(remove_instance);
}

FIXTURE(trace) {
	struct buffer buf;
};

EXPORTER_VARIANTS(trace);

static bool write_in(const char *dir, const char *file, const char *text)
{
	char path[128];
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd >= 0) {
		n = write(fd, text, strlen(text));
		close(fd);
	}

	return n == strlen(text);
}

FIXTURE_SETUP(trace)
{
	char pid[16];

	if (access(TRACEFS "/events/dma_buf", R_OK))
		SKIP(return, TRACEFS "/events/dma_buf: %s", strerror(errno));
	setup_buffer(_metadata, &self->buf, variant->exporter);
	if (self->buf.fd < 0)
		return;

	snprintf(pid, sizeof(pid), "%d", getpid());
	/* The first test makes it. */
	ASSERT_TRUE(!mkdir(instance, 0700) || errno == EEXIST);
	ASSERT_TRUE(write_in(instance, "set_event_pid", pid));
	ASSERT_TRUE(write_in(instance, "events/dma_buf/enable", "1"));
	ASSERT_TRUE(write_in(instance, "trace", "\n"));
}

FIXTURE_TEARDOWN(trace)
{
	teardown_buffer(&self->buf);
}

static char events[1 << 16];

/*
 * The text of all events since the last call: what follows task, processor and time. In place of
 * the address of an attachment it has how many others the test has seen before.
 */
static const char *read_events(void)
{
	static char text[1 << 16];
	static unsigned long long known[8];
	static int count;
	char path[128], *line, *end, *event, *arg;
	unsigned long long attachment;
	size_t len = 0;
	int i, n;

	snprintf(path, sizeof(path), "%s/trace", instance);
	events[0] = '\0';
	if (!read_text(path, text, sizeof(text)))
		return "unreadable";
	write_in(instance, "trace", "\n");

	for (line = text; (end = strchr(line, '\n')); line = end + 1) {
		*end = '\0';
		event = strstr(line, ": dma_buf_");
		if (*line == '#' || !event)
			continue;
		event += 2;
		arg = strstr(event, " attachment:");
		if (arg && sscanf(arg, " attachment:%llx%n", &attachment, &n) == 1) {
			for (i = 0; i < count && known[i] != attachment; i++)
				;
			if (i == count && count < ARRAY_SIZE(known))
				known[count++] = attachment;
			len += snprintf(events + len, sizeof(events) - len,
					"%.*s attachment:#%d%s\n", (int)(arg - event), event, i,
					arg + n);
		} else {
			len += snprintf(events + len, sizeof(events) - len, "%s\n", event);
		}
	}

	return events;
}

static char expected_events[1024];

/* Add a line: the event, the buffer with the inode number, and what else there is. */
static void __attribute__((format(printf, 4, 5)))
expect_event(const struct buffer *buf, unsigned long long ino, const char *event,
	     const char *more, ...)
{
	size_t len = strlen(expected_events);
	va_list args;

	len += snprintf(expected_events + len, sizeof(expected_events) - len,
			"%s: exp_name=%s size=%zu ino=%llu", event, buf->exporter->exp_name,
			buf->size, ino);
	va_start(args, more);
	len += vsnprintf(expected_events + len, sizeof(expected_events) - len, more, args);
	va_end(args);
	strcat(expected_events, "\n");
}

/* What an operation has done is what was added since the last call. */
#define EXPECT_EVENTS() do {							\
	EXPECT_STREQ(expected_events, read_events());				\
	expected_events[0] = '\0';						\
} while (0)

/* The fields of an event but for those that all events have: "type name;" and so on. */
static const char *event_fields(const char *event)
{
	static char fields[512];
	char path[128], text[4096], *line, *end;
	size_t len = 0;

	snprintf(path, sizeof(path), TRACEFS "/events/dma_buf/%s/format", event);
	fields[0] = '\0';
	if (!read_text(path, text, sizeof(text)))
		return "unreadable";
	for (line = strstr(text, "\n\n\tfield:"); line; line = strstr(line, "\n\tfield:")) {
		line = strstr(line, "field:") + strlen("field:");
		end = strchr(line, ';');
		len += snprintf(fields + len, sizeof(fields) - len, "%s%.*s;", len ? " " : "",
				(int)(end - line), line);
	}

	return fields;
}

#define OF_BUFFER	"__data_loc char[] exp_name; size_t size; ino_t ino;"
#define OF_DEVICE	"__data_loc char[] dev_name; " OF_BUFFER \
			" struct dma_buf_attachment * attach; bool is_dynamic;"

/* What programs that read the events in binary form find out first. */
TEST(event_formats)
{
	static const struct {
		const char *name;
		const char *fields;
	} formats[] = {
		{ "dma_buf_export", OF_BUFFER },
		{ "dma_buf_mmap_internal", OF_BUFFER },
		{ "dma_buf_mmap", OF_BUFFER },
		{ "dma_buf_put", OF_BUFFER },
		{ "dma_buf_dynamic_attach", OF_DEVICE },
		{ "dma_buf_detach", OF_DEVICE },
		{ "dma_buf_fd", OF_BUFFER " int fd;" },
		{ "dma_buf_get", OF_BUFFER " int fd;" },
	};
	int i;

	if (access(TRACEFS "/events/dma_buf", R_OK))
		SKIP(return, TRACEFS "/events/dma_buf: %s", strerror(errno));
	for (i = 0; i < ARRAY_SIZE(formats); i++)
		EXPECT_STREQ(formats[i].fields, event_fields(formats[i].name));
}

TEST_F(trace, export)
{
	int fd = alloc_another(&self->buf);
	unsigned long long ino;

	ASSERT_GE(fd, 0);
	ino = inode_of(fd);
	expect_event(&self->buf, ino, "dma_buf_export", "%s", "");
	expect_event(&self->buf, ino, "dma_buf_fd", " fd=%d", fd);
	/* Closing the handle. */
	if (self->buf.exporter == &exporter_vgem) {
		expect_event(&self->buf, ino, "dma_buf_put", "%s", "");
		expect_event(&self->buf, ino, "dma_buf_put", "%s", "");
	}
	EXPECT_EVENTS();

	/* A descriptor is the VFS's. */
	close(fd);
	EXPECT_EVENTS();
}

TEST_F(trace, no_events)
{
	char name[] = "frame";
	int fd;

	ASSERT_EQ(0, set_name(self->buf.fd, name));
	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_START));
	ASSERT_EQ(0, cpu_access(self->buf.fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
	fd = export_sync_file(self->buf.fd, DMA_BUF_SYNC_RW);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, import_sync_file(self->buf.fd, DMA_BUF_SYNC_RW, fd));
	close(fd);
	EXPECT_EQ(POLL_RW, poll_now(self->buf.fd, POLL_RW));
	EXPECT_EQ(self->buf.size, lseek(self->buf.fd, 0, SEEK_END));
	close(dup(self->buf.fd));
	ASSERT_TRUE(read_bufinfo());
	EXPECT_EVENTS();
}

TEST_F(trace, mmap)
{
	void *addr = map(self->buf.fd, self->buf.size);

	ASSERT_NE(MAP_FAILED, addr);
	expect_event(&self->buf, inode_of(self->buf.fd), "dma_buf_mmap_internal", "%s", "");
	EXPECT_EVENTS();
	munmap(addr, self->buf.size);
	EXPECT_EVENTS();
	/* The range is looked at before. */
	ASSERT_EQ(-EINVAL, try_map(self->buf.fd, self->buf.size + getpagesize(), PROT_READ, 0));
	EXPECT_EVENTS();
}

TEST_F(trace, import)
{
	unsigned long long ino = inode_of(self->buf.fd);
	bool own = self->buf.exporter == &exporter_vgem;
	int vgem[2], i, fd = self->buf.fd;
	__u32 handle[2];

	for (i = 0; i < 2; i++) {
		vgem[i] = vgem_open();
		if (vgem[i] < 0)
			SKIP(return, "vgem: %s", strerror(errno));
		ASSERT_EQ(0, vgem_import(vgem[i], fd, &handle[i]));
		expect_event(&self->buf, ino, "dma_buf_get", " fd=%d", fd);
		if (!own)
			expect_event(&self->buf, ino, "dma_buf_dynamic_attach",
				     " attachment:#%d is_dynamic=0 dev_name=vgem", i);
		expect_event(&self->buf, ino, "dma_buf_put", "%s", "");
		EXPECT_EVENTS();
	}

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, vgem_close(vgem[i], handle[i]));
		/* The handle's, the object's, then that of the import. */
		expect_event(&self->buf, ino, "dma_buf_put", "%s", "");
		if (!own) {
			expect_event(&self->buf, ino, "dma_buf_put", "%s", "");
			expect_event(&self->buf, ino, "dma_buf_detach",
				     " attachment:#%d is_dynamic=0 dev_name=vgem", i);
			expect_event(&self->buf, ino, "dma_buf_put", "%s", "");
		} else if (i) {
			expect_event(&self->buf, ino, "dma_buf_put", "%s", "");
		}
		EXPECT_EVENTS();
		close(vgem[i]);
	}
}

/* Nothing that is not a buffer is got. */
TEST_F(trace, import_invalid)
{
	int vgem = vgem_open();
	__u32 handle;

	if (vgem < 0)
		SKIP(return, "vgem: %s", strerror(errno));
	EXPECT_EQ(-EINVAL, vgem_import(vgem, vgem, &handle));
	EXPECT_EQ(-EBADF, vgem_import(vgem, -1, &handle));
	EXPECT_EVENTS();
	close(vgem);
}

/*
 * dma_buf_mmap() is for drivers that map an imported buffer through a file of their own. vgem does,
 * but tells nobody where: an offset that a buffer of its own had is free again when that is gone,
 * and the next of the same size gets it.
 */
TEST_F(trace, mmap_by_importer)
{
	struct drm_mode_map_dumb where = {};
	size_t size = self->buf.size;
	unsigned char *addr, *through;
	__u32 handle;
	int vgem = vgem_open();

	if (vgem < 0)
		SKIP(return, "vgem: %s", strerror(errno));
	if (self->buf.exporter == &exporter_vgem)
		SKIP(return, "vgem does not import its own buffers");
	ASSERT_EQ(0, vgem_create(vgem, size, &where.handle));
	ASSERT_EQ(0, do_ioctl(vgem, DRM_IOCTL_MODE_MAP_DUMB, &where));
	ASSERT_EQ(0, vgem_close(vgem, where.handle));
	ASSERT_EQ(0, vgem_import(vgem, self->buf.fd, &handle));
	addr = map(self->buf.fd, size);
	ASSERT_NE(MAP_FAILED, addr);
	addr[size - 1] = 0x5a;
	read_events();

	through = mmap(NULL, size, PROT_READ, MAP_SHARED, vgem, where.offset);
	ASSERT_NE(MAP_FAILED, through);
	expect_event(&self->buf, inode_of(self->buf.fd), "dma_buf_mmap", "%s", "");
	EXPECT_EVENTS();
	EXPECT_EQ(0x5a, through[size - 1]);
	ASSERT_EQ(0, set_name(self->buf.fd, "frame"));
	EXPECT_STREQ("/dmabuf:frame", maps_path(through));

	/* The mapping is one of the buffer, and keeps it. */
	close(vgem);
	munmap(addr, size);
	close(self->buf.fd);
	self->buf.fd = -1;
	EXPECT_EQ(0x5a, through[size - 1]);
	munmap(through, size);
}

TEST_HARNESS_MAIN
