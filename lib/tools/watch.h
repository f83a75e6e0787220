/* SPDX-License-Identifier: MIT */
/* watch: shows a VM again and again, on a terminal in one place. */
#ifndef TOOLS_WATCH_H
#define TOOLS_WATCH_H

#include <stdbool.h>
#include <stddef.h>

struct watch {
	const char *path;	/* of the socket */
	double seconds;		/* from one picture to the next */
	bool has_head;		/* a line with the time above each */
	/* Prints one dump to standard output; returns the exit status for it. */
	int (*show)(void *data, const char *text, size_t size);
	void *data;
};

/*
 * Returns the status of what was shown last, when a signal such as SIGINT or the end of the
 * VM's program ends it; @no_dump if nothing was shown.
 */
int watch_socket(const struct watch *watch, int no_dump);

#endif
