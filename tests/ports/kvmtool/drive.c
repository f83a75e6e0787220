/* SPDX-License-Identifier: MIT */
/*
 * drive: boots kvmtool's guest, reads its console, and inflates its balloon.
 *
 * kvmtool, the kernel, and a file system that begins with tests/ports/kvmtool/init are
 * in /f: tests/ports/kvmtool/run puts them there. Speaks TAP.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LKVM		"/f/lkvm-static"
#define NAME		"guest"
#define DISK		"/tmp/disk"
#define RAM_MIB		"256"
#define RAM_LOW_KIB	180000	/* the kernel keeps some for itself */
#define BALLOON_MIB	"100"
#define GIVEN_LOW_KIB	32768	/* of the 64 MiB of the file that the guest has removed */
#define LIMIT		120	/* seconds for one answer */
/* md5sum of 64 MiB of "x" */
#define SUM		"de506679685541efcb501eac224adc64"

static char text[1 << 20];	/* of the console, so far */
static size_t length, seen;
static int screen;
static bool lost;
static unsigned int points, failures;

__attribute__((noreturn)) static void die(const char *what)
{
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(EXIT_FAILURE);
}

static void point(bool passed, const char *claim)
{
	failures += !passed;
	printf("%sok %u - %s\n", passed ? "" : "not ", ++points, claim);
	fflush(stdout);
}

static pid_t start(const char *const *argv, int out)
{
	const pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return pid;
	dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
	dup2(out, STDOUT_FILENO);
	dup2(out, STDERR_FILENO);
	execv(argv[0], (char *const *)(uintptr_t)argv);
	_exit(127);
}

static int end(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Waits until @wanted appears after what was waited for last. */
static bool see(const char *wanted)
{
	const time_t deadline = time(NULL) + LIMIT;
	struct pollfd p = { .fd = screen, .events = POLLIN };
	const char *found;
	ssize_t count;

	while (!lost) {
		found = strstr(text + seen, wanted);
		if (found) {
			seen = (size_t)(found - text) + strlen(wanted);
			return true;
		}
		lost = time(NULL) > deadline || length == sizeof(text) - 1;
		if (lost || poll(&p, 1, 1000) < 1)
			continue;
		count = read(screen, text + length, sizeof(text) - 1 - length);
		lost = count <= 0;
		for (ssize_t i = 0; i < count; i++, length++)
			text[length] = text[length] ? text[length] : '?';
	}
	printf("# \"%s\" did not appear\n", wanted);
	return false;
}

static long number_after(const char *wanted)
{
	size_t at;

	if (!see(wanted))
		return -1;
	at = seen;
	return see("\n") ? strtol(text + at, NULL, 10) : -1;
}

/* KiB that the machine has free */
static long free_memory(void)
{
	char line[128];
	long kib = -1;
	FILE *file = fopen("/proc/meminfo", "re");

	while (file && kib < 0 && fgets(line, sizeof(line), file))
		sscanf(line, "MemFree: %ld", &kib);
	if (file)
		fclose(file);
	return kib;
}

static void make_disk(void)
{
	FILE *disk = fopen(DISK, "we");

	if (!disk || fputs("disk: hello from the host\n", disk) < 0 || ftruncate(fileno(disk), 1 << 20) < 0 ||
	    fclose(disk))
		die(DISK);
}

static bool disk_was_written(void)
{
	char found[512] = "";
	FILE *disk = fopen(DISK, "re");

	if (!disk || fseek(disk, 512, SEEK_SET) || fread(found, sizeof(found), 1, disk) != 1)
		return false;
	fclose(disk);
	return strncmp(found, "guest: wrote this", 17) == 0;
}

/* What the console said, as comments, to help find out what went wrong */
static void show_console(void)
{
	char *rest = text, *line;

	while ((line = strsep(&rest, "\r\n")))
		if (*line)
			printf("# | %s\n", line);
}

int main(void)
{
	const char *const run[] = {
		LKVM, "run", "--name", NAME, "-k", "/f/vmlinuz", "-i", "/f/initrd", "-m", RAM_MIB,
		"-c", "1", "-d", DISK, "--balloon", "--network", "mode=none", "--loglevel", "debug",
		"-p", "quiet noxsave mitigations=off console=ttyS0", NULL,
	};
	const char *const inflate[] = { LKVM, "balloon", "--name", NAME, "--inflate", BALLOON_MIB, NULL };
	long ram, before, given = 0;
	int out[2];
	pid_t pid;

	setenv("HOME", "/tmp", 1);
	make_disk();
	if (pipe2(out, O_CLOEXEC) < 0)
		die("pipe");
	printf("1..7\n");
	pid = start(run, out[1]);
	close(out[1]);
	screen = out[0];

	point(see("Guest memory: shared\n"), "kvmtool gives its guest a guest_memfd");
	ram = number_after("guest: RAM is ");
	point(ram > RAM_LOW_KIB, "a kernel boots, and has its RAM");
	point(see("disk: hello from the host"), "it reads its disk");
	point(see("guest: sum is " SUM), "its memory holds what it was given");
	point(see("guest: waits") && disk_was_written(), "it writes its disk");
	before = free_memory();
	if (end(start(inflate, STDOUT_FILENO)) == 0 && see("guest: gave memory back"))
		given = free_memory() - before;
	point(given > GIVEN_LOW_KIB, "the balloon gives memory back to the host");
	printf("# %ld KiB\n", given);
	point(see("session ended normally") && end(pid) == 0, "kvmtool ends as it should");
	if (failures)
		show_console();
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
