/* SPDX-License-Identifier: MIT */
#include "socket.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "text.h"

char *read_whole(int fd, size_t *ret_size)
{
	size_t size = 0, room = (size_t)1 << 16;
	char *text = check_memory(malloc(room + 1));
	ssize_t n;

	for (;;) {
		n = read(fd, text + size, room - size);
		if (n == 0 || (n < 0 && errno != EINTR))
			break;
		size += n > 0 ? (size_t)n : 0;
		if (size > MAX_DUMP_BYTES) {
			print_error("no dump is longer than %zu MiB", MAX_DUMP_BYTES >> 20);
			free(text);
			return NULL;
		}
		if (size == room)
			text = check_memory(realloc(text, (room *= 2) + 1));
	}
	if (n < 0) {
		print_error("the dump cannot be read: %s", strerror(errno));
		free(text);
		return NULL;
	}
	text[size] = '\0';
	*ret_size = size;
	return text;
}

/* ---- from a socket ---- */

__attribute__((format(printf, 3, 4)))
static bool fail(struct answered *ret, enum answer answer, const char *format, ...)
{
	va_list args;

	ret->answer = answer;
	va_start(args, format);
	vsnprintf(ret->error, sizeof(ret->error), format, args);
	va_end(args);
	return false;
}

static time_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec;
}

static bool fill_address(const char *path, struct sockaddr_un *ret, socklen_t *ret_size,
			 struct answered *answered)
{
	size_t length = strlen(path);

	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!length || length >= sizeof(ret->sun_path))
		return fail(answered, ANSWER_BROKEN, "the path of a socket has 1 to %zu bytes, this one %zu",
			    sizeof(ret->sun_path) - 1, length);
	memcpy(ret->sun_path, path, length);
	*ret_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
	if (path[0] == '@') {
		ret->sun_path[0] = '\0';
		(*ret_size)--;
	}
	return true;
}

/* Waits until @fd is ready or @until has come. */
static bool wait_for(int fd, short events, time_t until, const sigset_t *waiting,
		     struct answered *ret)
{
	struct pollfd pollfd = { .fd = fd, .events = events };
	struct timespec time = { .tv_sec = until - now() };
	int n = time.tv_sec > 0 ? ppoll(&pollfd, fd >= 0, &time, waiting) : 0;

	if (n < 0 && errno == EINTR && waiting)
		return fail(ret, ANSWER_STOPPED, "stopped");
	if (n < 0 && errno != EINTR)
		return fail(ret, ANSWER_BROKEN, "%s", strerror(errno));
	if (n == 0 && now() >= until)
		return fail(ret, ANSWER_NOTHING, "the program that runs the VM does not answer");
	return true;
}

static bool connect_to(int fd, const char *path, time_t until, const sigset_t *waiting,
		       struct answered *ret)
{
	struct sockaddr_un address;
	socklen_t size = 0;
	struct stat file;

	if (!fill_address(path, &address, &size, ret))
		return false;
	while (connect(fd, (const struct sockaddr *)&address, size) < 0) {
		const struct timespec pause = { .tv_nsec = 50000000 };

		if (errno == EINTR)
			continue;
		if (errno == ECONNREFUSED || errno == ENOENT)
			return fail(ret, ANSWER_NOBODY, "%s", errno == ENOENT ? "there is no such socket"
				    : stat(path, &file) == 0 && !S_ISSOCK(file.st_mode) ? "this is no socket"
				    : "no program listens at this socket");
		if (errno != EAGAIN)
			return fail(ret, ANSWER_BROKEN, "%s", strerror(errno));
		/* The backlog is full: as many others wait for their dump. */
		if (ppoll(NULL, 0, &pause, waiting) < 0 && errno == EINTR && waiting)
			return fail(ret, ANSWER_STOPPED, "stopped");
		if (now() >= until)
			return fail(ret, ANSWER_NOTHING, "too many wait for an answer");
	}
	return true;
}

static bool receive(int fd, unsigned int seconds, const sigset_t *waiting, struct answered *ret)
{
	size_t room = (size_t)1 << 16;
	ssize_t n;

	ret->text = check_memory(malloc(room + 1));
	for (;;) {
		if (!wait_for(fd, POLLIN, now() + seconds, waiting, ret))
			return false;
		n = read(fd, ret->text + ret->size, room - ret->size);
		if (n == 0)
			break;
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n < 0)
			return fail(ret, ANSWER_BROKEN, "the dump cannot be read: %s", strerror(errno));
		ret->size += (size_t)n;
		if (ret->size > MAX_DUMP_BYTES)
			return fail(ret, ANSWER_BROKEN, "no dump is longer than %zu MiB", MAX_DUMP_BYTES >> 20);
		if (ret->size == room)
			ret->text = check_memory(realloc(ret->text, (room *= 2) + 1));
	}
	ret->text[ret->size] = '\0';
	return true;
}

void ask_for_dump(const char *path, unsigned int seconds, const sigset_t *waiting,
		  struct answered *ret)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	*ret = (struct answered){ .answer = ANSWER_DUMP };
	if (fd < 0) {
		fail(ret, ANSWER_BROKEN, "%s", strerror(errno));
		return;
	}
	if (!connect_to(fd, path, now() + seconds, waiting, ret) ||
	    !receive(fd, seconds, waiting, ret)) {
		free(ret->text);
		ret->text = NULL;
	}
	close(fd);
}
