/* SPDX-License-Identifier: MIT */
/*
 * gmem-image merge: images that are based on each other, made one.
 *
 * The result has the identity and the generation of the newest image, whose contents it has, so
 * that images which are based on that one are based on the result, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/macros.h"
#include "gmem-image.h"
#include "image-writer.h"
#include "text.h"

/* ---- the new file ---- */

/* A file of which a part is written; removed when the program ends before the whole is. */
static char *unfinished;

static void remove_unfinished(void)
{
	if (unfinished)
		unlink(unfinished);
}

static void end_by_signal(int signal)
{
	remove_unfinished();
	raise(signal);	/* SA_RESETHAND: the default action */
}

/* SIGXFSZ is ignored: write(2) says that the file is too large. */
static bool is_fatal(int number)
{
	static const int others[] = { SIGKILL, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGCHLD, SIGCONT, SIGURG,
				      SIGWINCH, SIGXFSZ };

	for (size_t i = 0; i < GMEM_ARRAY_SIZE(others); i++)
		if (number == others[i])
			return false;
	return true;
}

static void remove_at_signals(void)
{
	const struct sigaction action = { .sa_handler = end_by_signal, .sa_flags = (int)SA_RESETHAND | SA_NODEFER };
	struct sigaction before;

	/* What the caller had ignored, as nohup(1) does, stays so. */
	for (int number = 1; number <= SIGRTMAX; number++)
		if (is_fatal(number) && !sigaction(number, NULL, &before) && before.sa_handler == SIG_DFL)
			sigaction(number, &action, NULL);
}

/* Creates the file so that no signal comes between its creation and the knowledge of its name. */
static int make_unfinished(char *name)
{
	sigset_t signals, before;
	int fd;

	sigfillset(&signals);
	sigprocmask(SIG_BLOCK, &signals, &before);
	fd = mkostemp(name, O_CLOEXEC);
	if (fd >= 0) {
		unfinished = name;
		atexit(remove_unfinished);
		remove_at_signals();
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	return fd;
}

__attribute__((noreturn))
static void fail(const char *name)
{
	print_error("%s: %s", name, strerror(errno));
	exit(EXIT_NO_IMAGE);
}

/* Makes a file beside the final one, with the permissions of @like. */
static int make_file(const struct options *options, const struct image_file *like)
{
	const char *slash = strrchr(options->output, '/');
	const int directory = slash ? (int)(slash - options->output + 1) : 0;
	char *name = NULL;
	struct stat st;
	int fd;

	if (!lstat(options->output, &st)) {
		errno = EEXIST;
		fail(options->output);
	}
	if (asprintf(&name, "%.*s.%s.XXXXXX", directory, options->output, options->output + directory) < 0)
		check_memory(NULL);
	fd = make_unfinished(name);
	if (fd < 0)
		fail(options->output);
	if (fstat(like->fd, &st) == 0 && S_ISREG(st.st_mode) && fchmod(fd, st.st_mode & 0777) < 0)
		fail(name);
	return fd;
}

static void sync_directory(const char *path)
{
	char *copy = check_memory(strdup(path));
	const int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	/* A file system without it gives EINVAL. */
	if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
		fail(path);
	close(fd);
	free(copy);
}

/* Gives the file its name, once it is on its disk; link(2) replaces nothing. */
static void finish_file(const struct options *options, int fd)
{
	if (fsync(fd) < 0 || close(fd) < 0)
		fail(options->output);
	if (renameat2(AT_FDCWD, unfinished, AT_FDCWD, options->output, RENAME_NOREPLACE) < 0) {
		if (errno != EINVAL || link(unfinished, options->output) < 0)
			fail(options->output);
		unlink(unfinished);
	}
	free(unfinished);
	unfinished = NULL;
	sync_directory(options->output);
}

/* ---- merging ---- */

static void write_lists(struct image_writer *writer, const struct image_source *source)
{
	writer_list(writer, IMAGE_REGIONS, source->regions, source->region_count, sizeof(*source->regions));
	writer_list(writer, IMAGE_ELSEWHERE, source->elsewhere, source->elsewhere_count,
		    sizeof(*source->elsewhere));
	writer_list(writer, IMAGE_PRIVATE, source->privates, source->private_count, sizeof(*source->privates));
}

static uint64_t memory_of(const struct image_source *source)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < source->region_count; i++)
		sum += source->regions[i].size;
	return sum;
}

static void write_memory(struct image_writer *writer, struct image_chain *chain)
{
	const struct image_source *newest = chain_newest(chain);
	const uint64_t total = memory_of(newest);
	struct watcher watcher = watcher_new();
	uint64_t done = 0;

	for (size_t i = 0; i < newest->region_count; i++) {
		const struct image_region *region = &newest->regions[i];
		struct piece piece = { .last = region->gpa - 1 };

		do {
			chain_look(chain, piece.last + 1, &piece);
			writer_put(writer, &piece);
			watcher_tell(&watcher, done + (piece.last - region->gpa + 1), total);
		} while (piece.last < region->gpa + (region->size - 1));
		done += region->size;
	}
	watcher_end(&watcher);
}

/*
 * Takes the place of the newest image, and is based on the parent of the oldest. What is based on
 * none is of version 1, which all programs read.
 */
static struct gmem_image_origin origin_of(const struct image_chain *chain)
{
	struct gmem_image_origin origin = chain_newest(chain)->origin;

	origin.parent = chain->sources->origin.parent;
	origin.version = origin.parent ? IMAGE_VERSION_2 : IMAGE_VERSION;
	return origin;
}

enum exit_status merge(const struct options *options)
{
	const bool to_file = strcmp(options->output, "-") != 0;
	struct image_writer writer = { .name = to_file ? options->output : "standard output" };
	struct image_chain chain = { 0 };
	struct gmem_image_origin origin;

	signal(SIGXFSZ, SIG_IGN);
	for (size_t i = 0; i < options->file_count; i++) {
		verify_alone(options, &options->files[i]);
		chain_add(&chain, &options->files[i]);
	}
	origin = origin_of(&chain);
	writer.fd = to_file ? make_file(options, chain_newest(&chain)->file) : STDOUT_FILENO;

	writer_begin(&writer, &origin);
	write_lists(&writer, chain_newest(&chain));
	write_memory(&writer, &chain);
	writer_end(&writer);
	if (to_file)
		finish_file(options, writer.fd);
	chain_free(&chain);
	return EXIT_FINE;
}
