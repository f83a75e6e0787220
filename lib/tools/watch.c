/* SPDX-License-Identifier: MIT */
/*
 * The signals that end the watch are blocked, except while it waits for time, for the program
 * or for the terminal, so that none is missed. The second one kills, as without a handler.
 * Nothing of the terminal's state is changed, so there is nothing to restore, however it ends.
 */
#include "watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "socket.h"
#include "text.h"

/* Without an answer for so long, the user is told. */
#define ANSWER_SECONDS 3

#define CURSOR_HOME	"\033[H"
#define NO_COLOR	"\033[0m"
#define CLEAR_LINE	"\033[K"
#define CLEAR_BELOW	"\033[J"

/* ---- signals ---- */

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static void block_signals(sigset_t *ret_before)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	const struct sigaction action = { .sa_handler = stop, .sa_flags = (int)SA_RESETHAND };
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
		struct sigaction before;

		/* nohup(1), and a shell for what it runs in the background, have them ignored. */
		sigaction(signals[i], NULL, &before);
		if (before.sa_handler == SIG_IGN)
			continue;
		sigaddset(&set, signals[i]);
		sigaction(signals[i], &action, NULL);
	}
	sigprocmask(SIG_BLOCK, &set, ret_before);
	/* They may have been blocked by who started us. */
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		sigdelset(ret_before, signals[i]);
}

/* Returns false if a signal ends the watch. */
static bool pause_for(double seconds, const sigset_t *waiting)
{
	struct timespec time = { .tv_sec = (time_t)seconds };

	time.tv_nsec = (long)((seconds - (double)time.tv_sec) * 1e9);
	return ppoll(NULL, 0, &time, waiting) == 0;
}

/* ---- pictures ---- */

static void print_head(const struct watch *watch)
{
	time_t now = time(NULL);
	struct tm local;
	char text[32] = "";

	if (localtime_r(&now, &local))
		strftime(text, sizeof(text), "%F %T", &local);
	printf("%s  ", text);
	print_clean(watch->path, strlen(watch->path));
	printf("  every %g s\n", watch->seconds);
}

/* Returns the bytes of a line that fit into a row: a terminal has no columns for its colours. */
static size_t fitting(const char *line, size_t length, unsigned int width)
{
	size_t at = 0;

	while (at < length) {
		if (line[at] == '\033')
			at += strcspn(line + at, "m") + 1;
		else if (width--)
			at += first_columns(line + at, 1);
		else
			break;
	}
	return at;
}

/* Writes over what is there, without clearing it first, which would flicker. */
static void print_in_place(FILE *out, const char *text, unsigned int rows, unsigned int width)
{
	fputs(CURSOR_HOME, out);
	for (unsigned int row = 1; *text; row++) {
		size_t length = strcspn(text, "\n");

		/* The last line is for messages. */
		if (row == rows - 1) {
			fputs("(the terminal has no more lines)" CLEAR_LINE "\n", out);
			break;
		}
		/* A line that goes on in a second row would move the others out. */
		size_t shown = fitting(text, length, width);

		fwrite(text, 1, shown, out);
		fputs(shown < length ? NO_COLOR CLEAR_LINE "\n" : CLEAR_LINE "\n", out);
		text += length + (text[length] == '\n');
	}
	fputs(CLEAR_BELOW, out);
}

static unsigned int terminal_rows(void)
{
	struct winsize size;

	return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 ? size.ws_row : 24;
}

/* Not through stdio, which a signal does not stop: a terminal may be held, or a pipe full. */
static bool write_out(const char *text, size_t size, const sigset_t *waiting)
{
	sigset_t before;
	ssize_t n = 0;

	sigprocmask(SIG_SETMASK, waiting, &before);
	while (size && !stopped && (n >= 0 || errno == EINTR)) {
		n = write(STDOUT_FILENO, text, size);
		text += n > 0 ? n : 0;
		size -= n > 0 ? (size_t)n : 0;
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (size && !stopped)
		print_error("standard output: %s", strerror(errno));
	return !size;
}

/* Returns what a watch prints for one dump. */
static char *make_picture(const struct watch *watch, const struct answered *answered, int *ret_status)
{
	FILE *before = stdout;
	char *text = NULL;
	size_t size;

	stdout = check_memory(open_memstream(&text, &size));
	if (watch->has_head)
		print_head(watch);
	*ret_status = watch->show(watch->data, answered->text, answered->size);
	if (watch->has_head && !isatty(STDOUT_FILENO))
		putchar('\n');
	fclose(stdout);
	stdout = before;
	return check_memory(text);
}

static bool show(const struct watch *watch, const struct answered *answered, const sigset_t *waiting,
		 int *ret_status)
{
	char *picture = make_picture(watch, answered, ret_status), *placed = NULL;
	size_t size = strlen(picture);
	bool goes_on;

	if (watch->has_head && isatty(STDOUT_FILENO)) {
		FILE *out = check_memory(open_memstream(&placed, &size));

		print_in_place(out, picture, terminal_rows(), terminal_width());
		fclose(out);
		check_memory(placed);
	}
	goes_on = write_out(placed ? placed : picture, size, waiting);
	free(placed);
	free(picture);
	return goes_on;
}

/* ---- the watch ---- */

int watch_socket(const struct watch *watch, int no_dump)
{
	struct answered answered;
	int status = no_dump;
	bool seen = false, told = false, goes_on = true;
	sigset_t waiting;

	block_signals(&waiting);
	while (goes_on) {
		ask_for_dump(watch->path, ANSWER_SECONDS, &waiting, &answered);
		switch (answered.answer) {
		case ANSWER_DUMP:
			seen = true;
			told = false;
			goes_on = show(watch, &answered, &waiting, &status);
			free(answered.text);
			break;
		case ANSWER_STOPPED:
			return status;
		case ANSWER_NOBODY:
			if (seen)
				print_error("%s: the program that ran the VM has ended, or serves no dumps any "
					    "more", watch->path);
			else
				print_error("%s: %s", watch->path, answered.error);
			return status;
		case ANSWER_NOTHING:
		case ANSWER_BROKEN:
			if (!told)
				print_error("%s: %s%s", watch->path, answered.error, seen ? "; trying again" : "");
			told = true;
			if (!seen && answered.answer == ANSWER_BROKEN)
				return status;
		}
		goes_on = goes_on && pause_for(watch->seconds, &waiting);
	}
	return status;
}
