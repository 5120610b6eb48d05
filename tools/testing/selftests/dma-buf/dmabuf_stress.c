// SPDX-License-Identifier: GPL-2.0
/*
 * Stress of the dma-buf core: threads and processes that share buffers of all exporters there are,
 * and do all that the user ABI has, at random.
 *
 * Shared buffers have a lock and known contents, which every way to see them has to show; the sum
 * by the sample is of bytes, whatever their order. Racy buffers have neither: they are used while
 * other threads close them. Their descriptors are from ranges of numbers that nothing else is in,
 * so that a number that is out of date is of another racy buffer or of nothing.
 *
 * An operation fails only for want of memory or of a fence, or if its racy buffer is gone.
 *
 * Nothing else may make or close buffers meanwhile: those of the whole machine are counted.
 */

#define _GNU_SOURCE
#include <assert.h>
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "stress.h"

#define STUCK		60	/* seconds without progress */
#define SETTLE		10	/* seconds for what is freed later */
#define EVERY_OP	5	/* seconds in which each operation gets its turn */
#define NUM_FDS		1024	/* more than any operation uses */

static struct worker workers[MAX_THREADS];
static atomic_bool stop;

/*
 * Threads
 */

static const struct op {
	const char *name;
	int (*run)(struct worker *w, int arg);
	int arg;
	int weight;
	int needs;	/* one bit for each */
	bool racy;
} ops[] = {
	{ "create system heap", op_create, SYSTEM_HEAP, 3, 1 << SYSTEM_HEAP, false },
	{ "create udmabuf", op_create, UDMABUF, 3, 1 << UDMABUF, false },
	{ "create vgem", op_create, VGEM, 3, 1 << VGEM, false },
	{ "create Rust sample", op_create, RUST_SAMPLE, 3, 1 << RUST_SAMPLE, false },
	{ "write", op_write, 0, 8, 0, false },
	{ "check", op_check, 0, 10, 0, false },
	{ "name", op_name, 0, 8, 0, false },
	{ "fdinfo", op_fdinfo, 0, 4, 0, false },
	{ "maps", op_maps, 0, 2, 0, false },
	{ "bufinfo", op_bufinfo, 0, 3, 1 << BUFFER_LIST, false },
	{ "lseek", op_seek, 0, 4, 0, false },
	{ "fstat", op_stat, 0, 4, 0, false },
	{ "dup", op_dup, 0, 5, 0, false },
	{ "sum", op_sum, 0, 6, 1 << RUST_SAMPLE, false },
	{ "prime", op_prime, 0, 6, 1 << VGEM, false },
	{ "import fence", op_import, 0, 8, 0, false },
	{ "export fence", op_export, 0, 6, 0, false },
	{ "poll now", op_poll, 0, 8, 0, false },
	{ "poll briefly", op_poll, 10, 6, 0, false },
	{ "poll until ready", op_poll_wait, 0, 4, 0, false },
	{ "epoll", op_epoll, 0, 5, 0, false },
	{ "epoll of the last", op_epoll_last, 0, 4, 0, false },
	{ "mmap of the last", op_map_last, 0, 4, 0, false },
	{ "send", op_send, 0, 6, 0, false },
	{ "send the last", op_send_last, 0, 4, 0, false },
	{ "send and lose", op_send_lost, 0, 3, 0, false },
	{ "racy create", op_racy_create, 0, 10, 0, true },
	{ "racy close", op_racy_close, 0, 4, 0, true },
	{ "racy dup", op_racy_dup, 0, 6, 0, true },
	{ "racy name", op_racy_name, 0, 6, 0, true },
	{ "racy sync", op_racy_sync, 0, 8, 0, true },
	{ "racy poll", op_racy_poll, 0, 8, 0, true },
	{ "racy epoll", op_racy_epoll, 0, 8, 0, true },
	{ "racy export fence", op_racy_export, 0, 5, 0, true },
	{ "racy import fence", op_racy_import, 0, 8, 0, true },
	{ "racy mmap", op_racy_map, 0, 6, 0, true },
	{ "racy prime", op_racy_prime, 0, 6, 1 << VGEM, true },
	{ "racy fstat", op_racy_stat, 0, 4, 0, true },
	{ "racy sum", op_racy_sum, 0, 6, 1 << RUST_SAMPLE, true },
	{ "racy fdinfo", op_racy_fdinfo, 0, 4, 0, true },
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

/* Whether the operation may fail with that. */
static bool expected_error(const struct op *op, int error)
{
	if (error == ENOMEM || error == EAGAIN)
		return true;

	return op->racy && (error == EBADF || (op->run == op_racy_fdinfo && error == ENOENT));
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
			if (!expected_error(&ops[i], -ret))
				mismatch("'%s' failed: %s", ops[i].name, strerror(-ret));
		}
	}
	atomic_store(&w->ended, true);

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

/* The number in the last line of bufinfo: "Total %d objects, ...", or -1. */
static int num_buffers(void)
{
	FILE *f = fopen(BUFINFO, "re");
	char line[256], what;
	int number, count = -1;

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		/* Each buffer has a total of devices. */
		if (sscanf(line, "Total %d %c", &number, &what) == 2 && what == 'o')
			count = number;
	}
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

static void start_workers(int num_threads, uint64_t seed)
{
	int i;

	init_shared();
	init_racy();
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
	int i;

	for (i = 0; i < num_threads; i++) {
		pthread_join(workers[i].thread, NULL);
		if (workers[i].drm >= 0)
			close(workers[i].drm);
		free(workers[i].text);
	}
	close_shared();
	close_racy();
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
	kill_helpers();
	if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
		_exit(KSFT_FAIL);
	_exit(KSFT_FAIL);
}

/* Returns whether there are no more buffers and descriptors than before, soon. */
static bool nothing_leaked(int buffers, int descriptors)
{
	int now_buffers, now_descriptors;
	double start = now();

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
	bool all_ended, reaped, clean;
	double start, end;
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
	if (getrlimit(RLIMIT_NOFILE, &limit))
		ksft_exit_fail_perror("getrlimit");
	if (limit.rlim_cur < NUM_FDS) {
		limit.rlim_cur = NUM_FDS;
		if (setrlimit(RLIMIT_NOFILE, &limit))
			ksft_exit_skip("needs %d descriptors: %s\n", NUM_FDS, strerror(errno));
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
		start_timelines();
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

	/* Those that are not stuck are to end. */
	atomic_store(&stop, true);
	signal(SIGALRM, stuck_at_end);
	alarm(2 * STUCK);
	missing = print_counts(num_threads, end - start);
	if (stuck) {
		/* They cannot be waited for, and hold what would have to be checked. */
		ksft_test_result(!atomic_load(&num_mismatches), "contents\n");
		ksft_test_result_fail("progress\n");
		ksft_test_result_skip("nothing leaked: a thread is stuck\n");
		ksft_test_result_skip("every operation ran: a thread is stuck\n");
		if (have(FENCES))
			end_timelines();
		kill_helpers();
		ksft_finished();
	}
	end_workers(num_threads);
	if (have(FENCES))
		end_timelines();
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
