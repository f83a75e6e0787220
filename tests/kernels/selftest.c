/* SPDX-License-Identifier: MIT */
/*
 * Programs that go wrong in one way each, for tests/kernels/selftest. The name
 * a copy of this program is started by chooses the way.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		perror(path);
}

static int passes(void)
{
	puts("ok 1 - two and two make four");
	puts("ok 2 - this needs more # SKIP not on this kernel");
	puts("1..2");
	return 0;
}

static int fails(void)
{
	puts("1..2");
	puts("ok 1 - two and two make four");
	puts("not ok 2 - two and two make five");
	puts("# they made 4");
	return 1;
}

static int hangs(void)
{
	puts("ok 1 - starts");
	if (fork() == 0)
		for (;;)
			;
	while (pause())
		;
	return 0;
}

static int aborts(void)
{
	puts("ok 1 - starts");
	printf("about to");	/* no newline: must not be lost */
	fflush(stdout);
	abort();
}

static int warns(void)
{
	passes();
	write_to("/dev/kmsg", "<4>WARNING: CPU: 0 PID: 1 at planted.c:1 planted()");
	return 0;
}

static int leaks(void)
{
	passes();
	write_to("/dev/kmsg", "<4>KVM: debugfs: duplicate directory 1-2");
	return 0;
}

static int panics(void)
{
	puts("ok 1 - starts");
	write_to("/proc/sysrq-trigger", "c");
	pause();
	return 0;
}

static int stops_short(void)
{
	puts("1..3");
	puts("ok 1 - and no more");
	return 0;
}

static int says_nothing(void)
{
	return 0;
}

static int exits_badly(void)
{
	passes();
	return 3;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} ways[] = {
		{ "passes", passes }, { "fails", fails }, { "hangs", hangs },
		{ "aborts", aborts }, { "warns", warns }, { "leaks", leaks },
		{ "panics", panics }, { "stops-short", stops_short },
		{ "says-nothing", says_nothing }, { "exits-badly", exits_badly },
	};
	const char *name = argc ? strrchr(argv[0], '/') : NULL;

	for (size_t i = 0; name && i < sizeof(ways) / sizeof(ways[0]); i++)
		if (!strcmp(name + 1, ways[i].name))
			return ways[i].run();
	return 99;
}
