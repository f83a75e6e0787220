/* SPDX-License-Identifier: MIT */
/*
 * PID 1 of the machines that tests/kernels/run boots.
 *
 * /plan says what to do, one order a line, fields separated by tabs:
 *
 *	env	NAME=VALUE
 *	module	FILE	PARAMETERS
 *	limit	SECONDS
 *	report
 *	run	NAME	PROGRAM	ARGUMENT...
 *	shell
 *
 * and from "report" on the console tells what happened, in lines of these forms:
 *
 *	@@ boot RELEASE PAGE_SIZE CPUS
 *	@@ start NAME
 *	@@ out TEXT			a line the program wrote
 *	@@ part TEXT			the same, but its newline is still to come
 *	@@ log TEXT			a line of the kernel log
 *	@@ end NAME exit STATUS		or "signal NUMBER", or "limit SECONDS"
 *	@@ error TEXT			an order that could not be carried out
 *	@@ done
 *
 * A line without "@@" comes from the kernel itself. QEMU exits with 0 after a
 * guest panic too, so only "@@ done" means that everything was carried out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096
#define MAX_FIELDS 64
#define KLOG_CONSOLE_LEVEL 8
#define LOG_MARK "init: the log is read up to here"

static int kernel_log = -1;
static int limit = 300;
static bool reporting;

/* One write per line, so that nothing of the kernel's lands inside it. */
__attribute__((format(printf, 1, 2)))
static void say(const char *format, ...)
{
	char line[LINE_MAX_BYTES + 64];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);

	if (length > (int)sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';

	for (int done = 0; done < length;) {
		ssize_t n = write(STDOUT_FILENO, line + done, length - done);

		if (n > 0)
			done += n;
		else if (errno != EINTR && errno != EAGAIN)
			return;
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* ---- the system a program expects ---- */

static void mount_filesystems(void)
{
	static const struct {
		const char *type, *where;
	} wanted[] = {
		{ "proc", "/proc" },
		{ "sysfs", "/sys" },
		{ "devtmpfs", "/dev" },
		{ "devpts", "/dev/pts" },
		{ "tmpfs", "/dev/shm" },
		{ "tmpfs", "/tmp" },
		{ "cgroup2", "/sys/fs/cgroup" },
		{ "debugfs", "/sys/kernel/debug" },
	};

	/* Not every kernel has every one; programs say what they miss. */
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		mkdir(wanted[i].where, 0755);
		mount(wanted[i].type, wanted[i].where, wanted[i].type, 0, NULL);
	}
}

/* Lines end in LF alone when the terminal does no output processing. */
static void set_output_processing(int fd, bool on)
{
	struct termios t;

	if (tcgetattr(fd, &t))
		return;
	if (on)
		t.c_oflag |= OPOST | ONLCR;
	else
		t.c_oflag &= ~OPOST;
	tcsetattr(fd, TCSADRAIN, &t);
}

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR);

	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
	set_output_processing(STDOUT_FILENO, false);
	/* Level 3 lets panics and worse through, and nothing chatty. */
	klogctl(KLOG_CONSOLE_LEVEL, NULL, 3);
}

static void load_module(const char *file, const char *parameters)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || syscall(SYS_finit_module, fd, parameters, 0))
		say("@@ error cannot load %s: %s", file, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* ---- the kernel log ---- */

/* A record is "priority,number,microseconds,flags;text", then key=value lines. */
static void say_log_record(char *record)
{
	unsigned long long number = 0, usec = 0;
	char *text = strchr(record, ';');

	if (!text)
		return;
	sscanf(record, "%*u,%llu,%llu", &number, &usec);
	text++;
	text[strcspn(text, "\n")] = '\0';
	if (strcmp(text, LOG_MARK) == 0)
		return;
	say("@@ log [%5llu.%06llu] %s", usec / 1000000, usec % 1000000, text);
}

/* What the kernel logged since the last time. */
static void say_kernel_log(void)
{
	static const char mark[] = "<7>" LOG_MARK "\n";
	char record[LINE_MAX_BYTES];
	ssize_t n;

	/* A message without a newline shows only when another one follows. */
	if (write(kernel_log, mark, sizeof(mark) - 1) < 0)
		say("@@ error cannot write to the kernel log: %s", strerror(errno));
	for (;;) {
		n = read(kernel_log, record, sizeof(record) - 1);
		if (n > 0) {
			record[n] = '\0';
			say_log_record(record);
		} else if (n < 0 && errno == EPIPE) {
			say("@@ log (lines lost here: the kernel log overflowed)");
		} else {
			return;
		}
	}
}

/* ---- a program's output ---- */

static char pending[LINE_MAX_BYTES];
static size_t pending_length;

static void flush_pending(const char *kind)
{
	if (!pending_length && !strcmp(kind, "part"))
		return;
	say("@@ %s %.*s", kind, (int)pending_length, pending);
	pending_length = 0;
}

static void take_output(const char *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		if (bytes[i] == '\n') {
			flush_pending("out");
			continue;
		}
		pending[pending_length++] = bytes[i];
		if (pending_length == sizeof(pending))
			flush_pending("part");
	}
}

/* False once nobody can write any more. */
static bool read_output(int fd)
{
	char bytes[2048];
	ssize_t n = read(fd, bytes, sizeof(bytes));

	if (n > 0)
		take_output(bytes, n);
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

/* ---- one program ---- */

/*
 * A terminal rather than a pipe: C libraries write to a terminal line by line,
 * so what a program said before it died is not lost in its buffers.
 */
static int open_terminal(int *ret_program_side)
{
	struct termios t;
	int fd, program_side;

	fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (grantpt(fd) || unlockpt(fd))
		goto close_terminal;
	program_side = open(ptsname(fd), O_RDWR | O_NOCTTY);
	if (program_side < 0)
		goto close_terminal;

	tcgetattr(program_side, &t);
	cfmakeraw(&t);
	tcsetattr(program_side, TCSANOW, &t);
	fcntl(fd, F_SETFL, O_NONBLOCK);

	*ret_program_side = program_side;
	return fd;

close_terminal:
	close(fd);
	return -1;
}

static void become_program(char **argv, int terminal)
{
	sigset_t none;
	int null = open("/dev/null", O_RDONLY);

	setsid();
	ioctl(terminal, TIOCSCTTY, 0);
	dup2(null, STDIN_FILENO);
	dup2(terminal, STDOUT_FILENO);
	dup2(terminal, STDERR_FILENO);
	close(null);
	close(terminal);

	signal(SIGCHLD, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);

	execv(argv[0], argv);
	dprintf(STDERR_FILENO, "cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* Reaps whoever died; true if @child was among them. */
static bool reap(pid_t child, int *ret_status)
{
	bool found = false;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != child)
			continue;
		*ret_status = status;
		found = true;
	}
	return found;
}

/* Waits for output or a death, whichever comes first. */
static void wait_for_news(int fd, double seconds)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct timespec timeout = {
		.tv_sec = (time_t)seconds,
		.tv_nsec = (long)((seconds - (time_t)seconds) * 1e9),
	};
	sigset_t none;

	/* SIGCHLD is blocked but for this call, so none is missed. */
	sigemptyset(&none);
	ppoll(&p, 1, &timeout, &none);
}

/* False if the time limit passed first. */
static bool wait_for_program(pid_t child, int terminal, int *ret_status)
{
	double end = now() + limit, left;

	while (!reap(child, ret_status)) {
		left = end - now();
		if (left <= 0)
			return false;
		wait_for_news(terminal, left);
		/* A program may close its output and go on; poll ignores -1. */
		if (terminal >= 0 && !read_output(terminal))
			terminal = -1;
	}
	return true;
}

/* Ends every process but this one, and takes what they had still written. */
static void clean_up(int terminal)
{
	struct pollfd p = { .fd = terminal, .events = POLLIN };
	int status;

	kill(-1, SIGKILL);
	/* Reading ends with EIO when the last process is gone. */
	while (poll(&p, 1, 5000) > 0 && read_output(terminal))
		;
	while (waitpid(-1, &status, WNOHANG) > 0)
		;
	flush_pending("part");
}

static void say_end(const char *name, bool in_time, int status)
{
	if (!in_time)
		say("@@ end %s limit %d", name, limit);
	else if (WIFSIGNALED(status))
		say("@@ end %s signal %d", name, WTERMSIG(status));
	else
		say("@@ end %s exit %d", name, WEXITSTATUS(status));
}

static void run_program(const char *name, char **argv)
{
	int terminal, program_side = -1, status = 0;
	bool in_time;
	pid_t child;

	say_kernel_log();	/* what came before is not this program's doing */
	say("@@ start %s", name);
	terminal = open_terminal(&program_side);
	if (terminal < 0) {
		say("@@ error no terminal for %s: %s", name, strerror(errno));
		say("@@ end %s exit 126", name);
		return;
	}

	child = fork();
	if (child == 0)
		become_program(argv, program_side);
	close(program_side);

	in_time = wait_for_program(child, terminal, &status);
	clean_up(terminal);
	close(terminal);
	say_kernel_log();
	say_end(name, in_time, status);
}

/* ---- a shell ---- */

/* /dev/console cannot control a session; the terminal behind it can. */
static int open_console_terminal(void)
{
	char name[64] = "/dev/";
	int fd = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, name + 5, sizeof(name) - 6);

	if (fd >= 0)
		close(fd);
	name[5 + (n > 0 ? n : 0)] = '\0';
	name[strcspn(name, "\n")] = '\0';
	return open(name, O_RDWR | O_NOCTTY);
}

static void become_shell(void)
{
	static const char shell[] =
		"/bin/busybox --install -s /bin\n"
		"echo 'The tests are in /t. exit ends this machine, Ctrl-A x kills it.'\n"
		"exec sh";
	int fd = open_console_terminal();

	setsid();
	ioctl(fd, TIOCSCTTY, 1);
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	set_output_processing(fd, true);
	if (fd > 2)
		close(fd);

	signal(SIGCHLD, SIG_DFL);
	sigprocmask(SIG_SETMASK, &(sigset_t){ 0 }, NULL);
	execl("/bin/busybox", "sh", "-c", shell, NULL);
	_exit(127);
}

static void run_shell(void)
{
	pid_t child = fork();

	if (child == 0)
		become_shell();
	waitpid(child, NULL, 0);
}

/* ---- the plan ---- */

static void begin_report(void)
{
	struct utsname u;

	uname(&u);
	say("@@ boot %s %ld %ld", u.release, sysconf(_SC_PAGESIZE),
	    sysconf(_SC_NPROCESSORS_ONLN));
	reporting = true;
}

static void end_report(void)
{
	say_kernel_log();
	say("@@ done");
	tcdrain(STDOUT_FILENO);
}

static void carry_out(int fields, char **field)
{
	if (!strcmp(field[0], "env") && fields == 2)
		putenv(strdup(field[1]));
	else if (!strcmp(field[0], "module") && fields == 3)
		load_module(field[1], field[2]);
	else if (!strcmp(field[0], "limit") && fields == 2)
		limit = atoi(field[1]);
	else if (!strcmp(field[0], "report"))
		begin_report();
	else if (!strcmp(field[0], "run") && fields >= 3)
		run_program(field[1], field + 2);
	else if (!strcmp(field[0], "shell"))
		run_shell();
	else
		say("@@ error unknown order: %s", field[0]);
}

static void carry_out_plan(FILE *plan)
{
	char *line = NULL, *rest, *field[MAX_FIELDS];
	size_t size = 0;
	int fields;

	while (getline(&line, &size, plan) > 0) {
		line[strcspn(line, "\n")] = '\0';
		rest = line;
		fields = 0;
		while (rest && fields < MAX_FIELDS - 1)
			field[fields++] = strsep(&rest, "\t");
		field[fields] = NULL;
		carry_out(fields, field);
	}
	free(line);
}

static void on_child(int signal_number)
{
	(void)signal_number;	/* only there to interrupt ppoll() */
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_child };
	sigset_t child;
	FILE *plan;

	mount_filesystems();
	open_console();
	kernel_log = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	sigaction(SIGCHLD, &action, NULL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);

	setenv("PATH", "/bin:/t", 1);
	setenv("HOME", "/tmp", 1);
	if (chdir("/tmp"))
		say("@@ error no /tmp: %s", strerror(errno));

	plan = fopen("/plan", "re");
	if (plan)
		carry_out_plan(plan);
	else
		say("@@ error no /plan");

	if (reporting)
		end_report();
	reboot(RB_POWER_OFF);
	return 1;
}
