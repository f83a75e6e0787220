/* SPDX-License-Identifier: MIT */
/*
 * drive: sits at the console of tinyvmm, types, and reads what comes back.
 *
 *	drive [TINYVMM KERNEL INITRD]
 *
 * The guest's first file system is the one tests/tinyvmm/run makes. Whatever
 * is waited for is text; how long does not matter, within a generous limit.
 * Speaks TAP. What is after a step that failed cannot be tried, and fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LIMIT		600	/* seconds for one answer */
#define BOOT_LIMIT	300	/* and for a kernel to come up, the first time */
#define PROMPT		"guest# "
#define KEY		"\001"
#define SECTOR		512

#define RAM_MIB		"176"
#define RAM_LOW_KIB	120000	/* the kernel keeps some for itself */
#define DISK		"/tmp/disk"
#define SNAPSHOT	"/tmp/snapshot"
#define SOCKET		"/tmp/socket"

struct machine {
	pid_t pid;
	int keyboard, screen;
	char *text;		/* everything so far */
	size_t length;
	size_t seen;		/* up to where it was waited for */
	size_t shown;		/* up to where it was passed on */
	bool lost;		/* it did not answer, and will not be asked any more */
};

static const char *tinyvmm = "/f/tinyvmm", *kernel = "/f/vmlinuz", *initrd = "/f/initrd";

__attribute__((noreturn)) static void die(const char *what)
{
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(EXIT_FAILURE);
}

/* ---- a machine and its console ---- */

static void start(struct machine *m, const char *const *argv)
{
	int in[2], out[2];

	*m = (struct machine){ 0 };
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		die("pipe");
	fflush(stdout);
	m->pid = fork();
	if (m->pid < 0)
		die("fork");
	if (!m->pid) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		dup2(out[1], STDERR_FILENO);
		execv(argv[0], (char *const *)(uintptr_t)argv);
		fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	m->keyboard = in[1];
	m->screen = out[0];
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Print the console as TAP comments, to help find out what went wrong. */
static void show(struct machine *m)
{
	while (m->shown < m->length) {
		const char *line = m->text + m->shown;
		const size_t length = strcspn(line, "\r\n");

		if (!line[length])
			break;
		if (length)
			printf("# | %.*s\n", (int)length, line);
		m->shown += length + 1;
	}
	fflush(stdout);
}

/* False when nothing more comes: the machine is off, or it is too late. */
static bool read_screen(struct machine *m, double deadline)
{
	struct pollfd p = { .fd = m->screen, .events = POLLIN };
	const double left = deadline - now();
	ssize_t count;

	if (left <= 0 || poll(&p, 1, (int)(left * 1000) + 1) < 1)
		return false;
	m->text = realloc(m->text, m->length + 4096 + 1);
	if (!m->text)
		die("memory");
	count = read(m->screen, m->text + m->length, 4096);
	if (count <= 0)
		return false;
	/* NULs would hide what is behind them. */
	for (ssize_t i = 0; i < count; i++, m->length++)
		if (!m->text[m->length])
			m->text[m->length] = '?';
	m->text[m->length] = '\0';
	show(m);
	return true;
}

/* Waits until @text appears after what was waited for last. */
static bool see_within(struct machine *m, const char *text, int seconds)
{
	const double deadline = now() + seconds;
	char *found;

	for (;;) {
		found = m->text ? strstr(m->text + m->seen, text) : NULL;
		if (found) {
			m->seen = (size_t)(found - m->text) + strlen(text);
			return true;
		}
		if (m->lost || !read_screen(m, deadline)) {
			printf("# \"%s\" did not appear\n", text);
			m->lost = true;
			return false;
		}
	}
}

static bool see(struct machine *m, const char *text)
{
	return see_within(m, text, LIMIT);
}

static void type(struct machine *m, const char *text)
{
	size_t left = strlen(text);

	while (left) {
		const ssize_t count = write(m->keyboard, text, left);

		if (count < 0 && errno != EINTR)
			return;		/* it is gone, and see() will say so */
		if (count > 0) {
			text += count;
			left -= (size_t)count;
		}
	}
}

/* The exit status of tinyvmm; -1 if it did not end by itself */
static int end(struct machine *m)
{
	const double deadline = now() + (m->lost ? 0 : LIMIT);
	int status;

	while (read_screen(m, deadline))
		;
	/* tinyvmm closed its output, or took too long. */
	if (now() >= deadline)
		kill(m->pid, SIGKILL);
	close(m->keyboard);
	close(m->screen);
	while (waitpid(m->pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/*
 * Emulation is not perfect: now and then a kernel dies while it boots, the more so
 * one inside another. One that has come up is never given a second chance.
 */
static bool boot(struct machine *m, const char *const *argv)
{
	start(m, argv);
	if (see_within(m, PROMPT, BOOT_LIMIT))
		return true;
	/* If tinyvmm itself refused, it would refuse again. */
	if (end(m) > 0)
		return false;
	printf("# the kernel did not come up; trying once more\n");
	start(m, argv);
	return see(m, PROMPT);
}

/* ---- what is claimed ---- */

static unsigned int points, failures;

static void point(bool passed, const char *claim)
{
	failures += !passed;
	printf("%sok %u - %s\n", passed ? "" : "not ", ++points, claim);
	fflush(stdout);
}

/*
 * Types a command and waits for its last words. What is typed comes back from
 * the terminal too, so the words are typed with quotes inside.
 */
static bool ask(struct machine *m, const char *command, const char *answer)
{
	type(m, command);
	type(m, "\n");
	return see(m, answer) && see(m, PROMPT);
}

/* The number that a command prints after @text */
static long number_after(struct machine *m, const char *command, const char *text)
{
	size_t at;

	type(m, command);
	type(m, "\n");
	if (!see(m, text))
		return -1;
	at = m->seen;
	return see(m, PROMPT) ? strtol(m->text + at, NULL, 10) : -1;
}

static long memory_total(struct machine *m)
{
	return number_after(m, "echo \"MemTo\"tal=$(awk '/MemTotal/ { print $2 }' /proc/meminfo)",
			    "MemTotal=");
}

/* The KiB of memory in a snapshot of a guest that goes on */
static long snapshot_size(struct machine *m, const char *name)
{
	type(m, KEY "i");
	return see(m, name) ? strtol(m->text + m->seen, NULL, 10) : -1;
}

/* ---- the disk ---- */

static void make_disk(void)
{
	char sector[SECTOR];
	FILE *disk = fopen(DISK, "we");

	if (!disk)
		die(DISK);
	for (unsigned int i = 0; i < 2048; i++) {
		memset(sector, 0, sizeof(sector));
		snprintf(sector, sizeof(sector), "this is sector %u\n", i);
		fwrite(sector, sizeof(sector), 1, disk);
	}
	if (fclose(disk))
		die(DISK);
}

static bool disk_holds(unsigned int sector, const char *text)
{
	char found[SECTOR] = "";
	FILE *disk = fopen(DISK, "re");
	bool same;

	if (!disk)
		die(DISK);
	same = !fseek(disk, (long)sector * SECTOR, SEEK_SET) &&
	       fread(found, sizeof(found), 1, disk) == 1 && !strncmp(found, text, strlen(text));
	fclose(disk);
	return same;
}

static const char wait_for_more_memory[] =
	"while [ $(awk '/MemTotal/ { print $2 }' /proc/meminfo) -le $before ]; "
	"do sleep 0.1; done; echo me\"mory\" grew";
static const char read_sector_1000[] =
	"dd if=/dev/vda bs=512 skip=1000 count=1 2>/dev/null | head -n 1";
static const char write_sector_1001[] =
	"echo the guest was \"here\" | dd of=/dev/vda bs=512 seek=1001 conv=sync,fsync 2>/dev/null;"
	" echo wr\"itten\"";
static const char read_sector_2000[] =
	"dd if=/dev/vda bs=512 skip=2000 count=1 2>/dev/null | head -n 1";
/*
 * Files in memory go where memory can be had movably, which is what was added.
 * A few MiB only: the first touch of a page takes the emulated processor long.
 */
static const char use_new_memory[] =
	"dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' x > /tmp/one; "
	"for i in 1 2 3 4 5 6 7 8; do cat /tmp/one; done > /tmp/big; "
	"awk '/zone +Movable/ { z = 1 } z && $1 == \"pages\" { free = $3 } "
	"z && $1 == \"managed\" { print \"us\" \"ed=\" $2 - free; exit }' /proc/zoneinfo";
static const char sum[] = "sum=$(md5sum < /tmp/big); echo su\"m\" is $sum";
static const char count_on[] =
	"(i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); echo $i > /tmp/i; done) & echo be\"gun\"";
static const char compare_sum[] = "[ \"$sum\" = \"$(md5sum < /tmp/big)\" ] && echo sa\"me\"";

int main(int argc, char **argv)
{
	struct machine m, receiver;
	long before, after, all, changed;
	bool alive;
	int status;

	if (argc == 4) {
		tinyvmm = argv[1];
		kernel = argv[2];
		initrd = argv[3];
	}
	signal(SIGPIPE, SIG_IGN);
	make_disk();

	const char *const from_kernel[] = {
		tinyvmm, "--memory", RAM_MIB, "--initrd", initrd, "--disk", DISK,
		"--snapshot", SNAPSHOT, "--append", "quiet loglevel=1 mitigations=off init_on_alloc=0 noxsave",
		kernel, NULL,
	};
	alive = boot(&m, from_kernel);
	if (!alive && m.text && strstr(m.text, "cannot run here")) {
		printf("1..0 # skip %s", strstr(m.text, "cannot run here"));
		return 77;
	}
	printf("1..17\n");
	point(alive, "a kernel boots to a shell");

	before = memory_total(&m);
	point(before > RAM_LOW_KIB && before <= 176 * 1024, "it has the RAM it was given");
	point(ask(&m, read_sector_1000, "this is sector 1000"), "it reads its disk");
	point(ask(&m, write_sector_1001, "written") &&
	      disk_holds(1001, "the guest was here"), "it writes its disk");

	ask(&m, "before=$(awk '/MemTotal/ { print $2 }' /proc/meminfo); echo no\"ted\"", "noted");
	type(&m, KEY "+");
	alive = see(&m, "asked to use 128 MiB of hot-added memory");
	point(alive && ask(&m, wait_for_more_memory, "memory grew"),
	      "it takes hot-added memory");
	point(number_after(&m, use_new_memory, "used=") >= 2048, "what it writes is in there");
	all = snapshot_size(&m, "snapshot in " SNAPSHOT ": ");
	point(all > 8192, "a snapshot is made, and the guest goes on");
	ask(&m, "cat /tmp/one >> /tmp/big; echo appen\"ded\"", "appended");
	ask(&m, sum, "sum is");
	changed = snapshot_size(&m, "snapshot in " SNAPSHOT ".1: ");
	point(changed >= 1024 && changed < all / 2, "the next one has what changed");
	after = memory_total(&m);

	type(&m, KEY "s");
	alive = see(&m, "snapshot in " SNAPSHOT ".2");
	status = end(&m);
	point(alive && !status, "a snapshot is made");

	/* How memory is backed is no part of what is saved. */
	const char *const from_snapshot[] = {
		tinyvmm, "--backing", "host", "--disk", DISK, "--migrate", SOCKET, "--restore", SNAPSHOT,
		"--restore", SNAPSHOT ".1", "--restore", SNAPSHOT ".2", NULL,
	};
	start(&m, from_snapshot);
	point(see(&m, "restored from " SNAPSHOT ".2") &&
	      ask(&m, "echo be\"fore\"=$before", "before=") && memory_total(&m) == after,
	      "the shell goes on where it was, in other memory of the same size");
	point(ask(&m, compare_sum, "same") && ask(&m, read_sector_2000, "this is sector 2000"),
	      "memory and disk are what they were");

	type(&m, KEY "m");
	point(see(&m, "nobody receives a guest") && ask(&m, "echo he\"re\"", "here"),
	      "without a receiver it goes on");
	const char *const from_socket[] = {
		tinyvmm, "--backing", "mapped", "--disk", DISK, "--receive", SOCKET, NULL,
	};
	start(&receiver, from_socket);
	see(&receiver, "waiting for a guest");
	ask(&m, count_on, "begun");
	type(&m, KEY "m");
	alive = see(&m, "migrated");
	status = end(&m);
	point(alive && !status, "it migrates while it works");
	m = receiver;
	point(see(&m, "received a guest") && ask(&m, "wait; echo co\"unted\" to $(cat /tmp/i)", "counted to 20000"),
	      "it goes on elsewhere with what it did");
	point(ask(&m, compare_sum, "same") &&
	      ask(&m, read_sector_2000, "this is sector 2000") && memory_total(&m) == after,
	      "memory and disk are what they were there, too");

	ask(&m, "rm /tmp/big; echo de\"leted\"", "deleted");
	type(&m, KEY "-");
	point(see(&m, "\n") && see(&m, "0 MiB of hot-added memory are left"),
	      "hot-added memory is given back");

	type(&m, "poweroff -f\n");
	alive = see(&m, "the guest switched itself off");
	point(!end(&m) && alive, "it switches itself off");
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
