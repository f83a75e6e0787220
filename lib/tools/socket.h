/* SPDX-License-Identifier: MIT */
/* socket: dumps from a program that serves them, see gmem_vm_serve_dump(). */
#ifndef TOOLS_SOCKET_H
#define TOOLS_SOCKET_H

#include <signal.h>
#include <stddef.h>

/* No dump is longer, even if every memslot of a VM is in use. */
#define MAX_DUMP_BYTES ((size_t)256 << 20)

enum answer {
	ANSWER_DUMP,		/* all that was sent, and then the connection's end */
	ANSWER_NOBODY,		/* nobody listens at the socket */
	ANSWER_NOTHING,		/* somebody listens, and did not answer in time */
	ANSWER_STOPPED,		/* a signal came that the caller waits for */
	ANSWER_BROKEN,		/* anything else */
};

struct answered {
	enum answer answer;
	char *text;		/* of ANSWER_DUMP, NUL-terminated, the caller's */
	size_t size;
	char error[200];	/* a sentence, for NOBODY, NOTHING and BROKEN */
};

/* Reads a whole @fd, NUL-terminated; NULL after printing a message. */
char *read_whole(int fd, size_t *ret_size);

/*
 * Connects to the Unix socket @path, "@" at its start for an abstract name, and reads a dump.
 * Nothing may come for @seconds at a time. @waiting, unless NULL, is the signal mask while the
 * call waits: a signal that comes in then ends it.
 */
void ask_for_dump(const char *path, unsigned int seconds, const sigset_t *waiting,
		  struct answered *ret);

#endif
