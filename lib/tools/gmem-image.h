/* SPDX-License-Identifier: MIT */
/* gmem-image: what the commands of the program share. */
#ifndef TOOLS_GMEM_IMAGE_H
#define TOOLS_GMEM_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "image-chain.h"

enum exit_status {
	EXIT_FINE = 0,
	EXIT_DAMAGED = 1,	/* an image that cannot be restored as it is */
	EXIT_DIFFERENT = 1,
	EXIT_NO_IMAGE = 3,
};

enum command { COMMAND_INFO, COMMAND_REGIONS, COMMAND_VERIFY, COMMAND_MERGE, COMMAND_DIFF, COMMANDS };

struct options {
	enum command command;
	struct image_file *files;	/* as they are on the command line */
	size_t file_count;
	struct image_file *parents;	/* of --parent */
	size_t parent_count;
	const char *output;		/* "-": standard output */
	uint64_t offset;
	bool json;
	bool quiet;
	bool allow_lost;
	uint64_t workers;
};

/* What the program exits with if an image is damaged: EXIT_DAMAGED, but for diff */
extern int exit_damaged;

/* Progress on a terminal */
struct watcher {
	bool wants;		/* somebody looks at standard error */
	bool has_line;
	time_t last;
	unsigned int lost;	/* ranges told so far */
};

struct watcher watcher_new(void);
/* As gmem_transfer_progress_fn. Only a terminal is told, and at most once a second. */
int watcher_tell(void *watcher, uint64_t done, uint64_t total);
/* To be called before anything else is printed. */
void watcher_end(struct watcher *watcher);

/* Verify a file by itself. If it does not pass, says so and exits. */
void verify_alone(const struct options *options, const struct image_file *file);

enum exit_status merge(const struct options *options);
enum exit_status diff(const struct options *options);

#endif
