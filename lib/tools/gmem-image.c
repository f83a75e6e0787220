/* SPDX-License-Identifier: MIT */
/* gmem-image: tells what images of a VM's memory have, verifies, merges and compares them. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "gmem.h"
#include "base/macros.h"
#include "gmem-image.h"
#include "text.h"

/* No image has more: see gmem_image_info(). */
#define MAX_REGIONS 131072

static const char *const command_names[COMMANDS] = {
	[COMMAND_INFO] = "info",
	[COMMAND_REGIONS] = "regions",
	[COMMAND_VERIFY] = "verify",
	[COMMAND_MERGE] = "merge",
	[COMMAND_DIFF] = "diff",
};

int exit_damaged = EXIT_DAMAGED;

static const char help[] =
	"Usage: gmem-image info|regions|verify|merge|diff [OPTION]... FILE...\n"
	"Tell about images of a VM's memory. FILE may be \"-\" for standard input where one is read once.\n"
	"\n"
	"  info             what the image has, in a few lines; of several, one line each\n"
	"  regions          its regions, one a line\n"
	"  verify           read all of it: is it whole? It may be preceded by what it is based on\n"
	"  merge            write one image that has what several have, the oldest first\n"
	"  diff             in which pages do two images differ?\n"
	"\n"
	"  --offset BYTES   where in each FILE the image begins; 0x is understood\n"
	"  --json           info, regions, diff: write JSON, see gmem-image(1)\n"
	"  --output FILE    merge: the new file; without it, or with \"-\", standard output\n"
	"  --parent FILE    diff: an image that one of them is based on; may be repeated, oldest first\n"
	"  --quiet          diff: print nothing, the exit status tells\n"
	"  --allow-lost     verify, merge, diff: accept images without pages that the hardware lost\n"
	"  --workers N      verify, merge, diff: verify with N threads\n"
	"  -V, --version    print the version of libgmem\n"
	"  -h, --help       print this\n"
	"\n"
	"Exit status: 0 fine, 1 an image is damaged, not complete or not based on the one before,\n"
	"2 wrong usage, 3 this is no image, or of another version, or it cannot be read or written.\n"
	"Of diff: 0 no difference, 1 they differ, 2 wrong usage, 3 anything else.\n";

/* ---- the command line ---- */

/* The library's limit, see struct gmem_transfer_opts */
#define MAX_WORKERS 1024

static uint64_t parse_number(const char *option, const char *text, uint64_t most, const char *what)
{
	unsigned long long number;
	char *end;

	errno = 0;
	number = strtoull(text, &end, 0);
	if (*text < '0' || *text > '9' || *end || errno || number > most)
		usage_error("%s %s: this is no number of %s", option, text, what);
	return number;
}

static enum command parse_command(const char *text)
{
	for (int i = 0; i < COMMANDS; i++)
		if (!strcmp(text, command_names[i]))
			return (enum command)i;
	usage_error("%s: no such command; there are info, regions, verify, merge and diff", text);
}

enum {
	OPTION_OFFSET = 256, OPTION_JSON, OPTION_OUTPUT, OPTION_PARENT, OPTION_QUIET, OPTION_ALLOW_LOST,
	OPTION_WORKERS
};

static const struct option known_options[] = {
	{ "offset", required_argument, NULL, OPTION_OFFSET },
	{ "json", no_argument, NULL, OPTION_JSON },
	{ "output", required_argument, NULL, OPTION_OUTPUT },
	{ "parent", required_argument, NULL, OPTION_PARENT },
	{ "quiet", no_argument, NULL, OPTION_QUIET },
	{ "allow-lost", no_argument, NULL, OPTION_ALLOW_LOST },
	{ "workers", required_argument, NULL, OPTION_WORKERS },
	{ "version", no_argument, NULL, 'V' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static void add_file(struct image_file **files, size_t *count, const char *path)
{
	*files = check_memory(reallocarray(*files, *count + 1, sizeof(**files)));
	(*files)[(*count)++] = (struct image_file){ .path = path, .fd = -1,
						    .name = strcmp(path, "-") ? path : "standard input" };
}

static void take_option(int option, const char *argument, struct options *options)
{
	switch (option) {
	case OPTION_OFFSET:
		options->offset = parse_number("--offset", optarg, INT64_MAX, "bytes");
		break;
	case OPTION_JSON:
		options->json = true;
		break;
	case OPTION_OUTPUT:
		options->output = optarg;
		break;
	case OPTION_PARENT:
		add_file(&options->parents, &options->parent_count, optarg);
		break;
	case OPTION_QUIET:
		options->quiet = true;
		break;
	case OPTION_ALLOW_LOST:
		options->allow_lost = true;
		break;
	case OPTION_WORKERS:
		options->workers = parse_number("--workers", optarg, MAX_WORKERS, "threads up to 1024");
		break;
	case 'V':
		printf("gmem-image %s\n", gmem_version());
		exit(EXIT_FINE);
	case 'h':
		fputs(help, stdout);
		exit(EXIT_FINE);
	default:
		refuse_option(argument);
	}
}

static void check_options(const struct options *options)
{
	const enum command command = options->command;
	const bool reads_all = command == COMMAND_VERIFY || command == COMMAND_MERGE || command == COMMAND_DIFF;

	if (options->json && (command == COMMAND_VERIFY || command == COMMAND_MERGE))
		usage_error("--json is for info, regions and diff; the exit status of verify tells");
	if (options->output && command != COMMAND_MERGE)
		usage_error("--output is for merge");
	if ((options->parent_count || options->quiet) && command != COMMAND_DIFF)
		usage_error("--%s is for diff", options->quiet ? "quiet" : "parent");
	if (options->quiet && options->json)
		usage_error("--quiet and --json: one of the two");
	if (options->allow_lost && !reads_all)
		usage_error("--allow-lost is for verify, merge and diff");
	if (options->workers && !reads_all)
		usage_error("--workers is for verify, merge and diff");
}

static void check_files(const struct options *options)
{
	const size_t count = options->file_count;

	if (options->command == COMMAND_REGIONS && count > 1)
		usage_error("%s: regions of one image at a time", options->files[1].path);
	if (options->command == COMMAND_DIFF && count != 2)
		usage_error("diff is of two images, and not of %zu", count);
	for (size_t i = 0; i < count + options->parent_count; i++) {
		const struct image_file *file = i < count ? &options->files[i] : &options->parents[i - count];

		if (!strcmp(file->path, "-") && (count > 1 || options->command == COMMAND_MERGE))
			usage_error("standard input is read once: images that are read side by side are in files");
	}
	if (options->command == COMMAND_MERGE && !strcmp(options->output, "-") && isatty(STDOUT_FILENO))
		usage_error("an image is nothing for a terminal: --output FILE, or a pipe");
}

static void parse_options(int argc, char **argv, struct options *options)
{
	int option;

	opterr = 0;
	while ((option = getopt_long(argc, argv, "hV", known_options, NULL)) != -1)
		take_option(option, argv[optind - 1], options);

	if (optind == argc)
		usage_error("what is to be done? info, regions, verify, merge or diff");
	options->command = parse_command(argv[optind]);
	if (optind + 1 == argc)
		usage_error("%s: which file? \"-\" is standard input", argv[optind]);
	for (int i = optind + 1; i < argc; i++)
		add_file(&options->files, &options->file_count, argv[i]);

	check_options(options);
	if (!options->output)
		options->output = "-";
	check_files(options);
	if (options->command == COMMAND_DIFF)
		exit_damaged = EXIT_NO_IMAGE;
}

/* ---- what is no image ---- */

/* Returns the path as one word of a shell, and no option; to be freed. */
static char *shell_word(const char *path)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-+,:@";
	const char *quote = path[strspn(path, plain)] ? "'" : "";
	char *word = check_memory(malloc(4 * strlen(path) + sizeof("'./'"))), *to = word;

	to = stpcpy(stpcpy(to, quote), *path == '-' ? "./" : "");
	for (; *path; path++) {
		if (*path == '\'')
			to = stpcpy(to, "'\\'");
		*to++ = *path;
	}
	strcpy(to, quote);
	return word;
}

/* Says how to go on, if these are the first bytes of something known. */
static void suggest(const struct options *options, const struct image_file *file,
		    const unsigned char first[8])
{
	static const struct { const char *magic; size_t size; const char *program; } packers[] = {
		{ "\x28\xb5\x2f\xfd", 4, "zstd" },
		{ "\x1f\x8b", 2, "gzip" },
		{ "\xfd" "7zXZ", 5, "xz" },
		{ "\x04\x22\x4d\x18", 4, "lz4" },
	};

	char *word = shell_word(file->path);

	for (size_t i = 0; i < GMEM_ARRAY_SIZE(packers); i++)
		if (!memcmp(first, packers[i].magic, packers[i].size))
			print_error("It is compressed with %s. Try: %s -dc %s | gmem-image %s -",
				    packers[i].program, packers[i].program, word,
				    command_names[options->command]);
	if (!memcmp(first, "{\"gmem_d", 8))
		print_error("It looks like a dump. Try: gmem-show %s", word);
	free(word);
}

static enum exit_status fail(const struct options *options, const struct image_file *file, int err)
{
	unsigned char first[8] = { 0 };
	const char *what = err == -EBADMSG ? "damaged: " : err == -ENODATA ? "not complete: " :
			   err == -EHWPOISON ? "not whole: " : err == -ENOLINK ? "not its parents: " : "";

	print_error("%s: %s%s", file->name, what, gmem_last_error());
	if (err == -ENOMSG && pread(file->fd, first, sizeof(first), (off_t)options->offset) > 0)
		suggest(options, file, first);
	return *what ? (enum exit_status)exit_damaged : EXIT_NO_IMAGE;
}

/* Returns false after saying why there is no image in the file. */
static bool open_image(const struct options *options, struct image_file *file)
{
	struct stat st;

	file->offset = options->offset;
	file->fd = strcmp(file->path, "-") ? open(file->path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
	if (file->fd < 0 || fstat(file->fd, &st) < 0)
		print_error("%s: %s", file->name, strerror(errno));
	else if (S_ISDIR(st.st_mode))
		print_error("%s: this is a directory, and no image", file->name);
	else if (S_ISREG(st.st_mode) && st.st_size == 0)
		print_error("%s: this is no image: the file is empty", file->name);
	else if (S_ISREG(st.st_mode) && (uint64_t)st.st_size <= options->offset)
		print_error("%s: the file has %jd bytes, and none at offset %" PRIu64, file->name,
			    (intmax_t)st.st_size, options->offset);
	else if (options->file_count > 1 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		print_error("%s: this can be read once: images that are read side by side are in files",
			    file->name);
	else {
		file->size = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
		return true;
	}
	return false;
}

static bool open_images(const struct options *options)
{
	for (size_t i = 0; i < options->file_count; i++)
		if (!open_image(options, &options->files[i]))
			return false;
	for (size_t i = 0; i < options->parent_count; i++)
		if (!open_image(options, &options->parents[i]))
			return false;
	return true;
}

/* ---- info and regions ---- */

static bool is_left_out(const struct gmem_image_region *region)
{
	return region->kind != GMEM_KIND_DEFAULT;
}

static void print_info(const struct gmem_image_summary *info, const struct gmem_image_region *regions,
		       uint64_t file_size)
{
	char text[SIZE_TEXT];
	uint32_t left_out = 0, count;

	for (uint32_t i = 0; i < info->region_count; i++)
		left_out += is_left_out(&regions[i]);
	count = info->region_count - left_out;

	printf("image of version %" PRIu32 ", identity 0x%016" PRIx64 "\n", info->version, info->id);
	if (info->parent)
		printf("incremental: what changed since image 0x%016" PRIx64 "; generation %" PRIu64 "\n",
		       info->parent, info->generation);
	if (info->flags & GMEM_IMAGE_FOLLOWED)
		printf("another image follows in the file; this is about the first one alone\n");
	printf("saved on a host with pages of %s\n", size_text(info->page_size, text));
	printf("%s of memory in %" PRIu32 " region%s\n", size_text(info->memory_bytes, text), count,
	       count == 1 ? "" : "s");
	if (info->private_bytes)
		printf("%s of it was private to the guest, and is not in the image\n",
		       size_text(info->private_bytes, text));
	if (left_out)
		printf("%s more in %" PRIu32 " region%s of kind device or external, not in the image\n",
		       size_text(info->left_out_bytes, text), left_out, left_out == 1 ? "" : "s");
	if (file_size)
		printf("the file has %s\n", size_text(file_size, text));
	printf("\nRead so far: the lists at its start. Whether the rest is whole: gmem-image verify\n");
}

static void print_regions(const struct gmem_image_summary *info, const struct gmem_image_region *regions)
{
	char address[24], size[SIZE_TEXT], private[SIZE_TEXT];

	printf("%18s  %9s  %-8s  %s\n", "address", "size", "backing", "contents");
	for (uint32_t i = 0; i < info->region_count; i++) {
		const struct gmem_image_region *region = &regions[i];

		snprintf(address, sizeof(address), "0x%" PRIx64, region->gpa);
		printf("%18s  %9s  ", address, size_text(region->size, size));
		if (is_left_out(region)) {
			printf("%-8s  not in the image: kind %s", "-", gmem_kind_name(region->kind));
			if (region->identity)
				printf(", identity 0x%" PRIx64, region->identity);
		} else {
			printf("%-8s  ", gmem_backing_name(region->backing));
			if (!region->private_bytes)
				printf("in the image");
			else if (region->private_bytes == region->size)
				printf("not in the image: was private");
			else
				printf("in the image, but for %s that was private",
				       size_text(region->private_bytes, private));
		}
		putchar('\n');
	}
}

static void print_json(const struct gmem_image_summary *info, const struct gmem_image_region *regions)
{
	printf("{\"schema\":1,\"version\":%" PRIu32 ",\"identity\":%" PRIu64 ",\"page_size\":%" PRIu64
	       ",\n\"parent\":%" PRIu64 ",\"generation\":%" PRIu64 ",\"followed\":%s"
	       ",\n\"memory\":%" PRIu64 ",\"private\":%" PRIu64 ",\"left_out\":%" PRIu64
	       ",\n\"regions\":[", info->version, info->id, info->page_size, info->parent, info->generation,
	       info->flags & GMEM_IMAGE_FOLLOWED ? "true" : "false", info->memory_bytes, info->private_bytes,
	       info->left_out_bytes);
	for (uint32_t i = 0; i < info->region_count; i++) {
		const struct gmem_image_region *region = &regions[i];

		printf("%s\n{\"gpa\":%" PRIu64 ",\"size\":%" PRIu64 ",\"backing\":", i ? "," : "",
		       region->gpa, region->size);
		print_json_string(is_left_out(region) ? NULL : gmem_backing_name(region->backing));
		printf(",\"kind\":");
		print_json_string(is_left_out(region) ? gmem_kind_name(region->kind) : NULL);
		printf(",\"identity\":%" PRIu64 ",\"private\":%" PRIu64 "}", region->identity,
		       region->private_bytes);
	}
	printf("]}\n");
}

static enum exit_status tell_one(const struct options *options)
{
	const struct image_file *file = options->files;
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = options->offset);
	GMEM_OPTS(gmem_image_summary, info, .id = 0);
	struct gmem_image_region *regions = check_memory(calloc(MAX_REGIONS, sizeof(*regions)));
	int count = gmem_image_info(file->fd, &opts, &info, regions, MAX_REGIONS);
	enum exit_status status = EXIT_FINE;

	if (count < 0)
		status = fail(options, file, count);
	else if (options->json)
		print_json(&info, regions);
	else if (options->command == COMMAND_INFO)
		print_info(&info, regions, file->size);
	else
		print_regions(&info, regions);
	free(regions);
	return status;
}

/* ---- info of several images ---- */

static uint64_t bytes_of(const struct image_source *source)
{
	const uint64_t end = source->file->size;

	return source->size ? source->size : end > source->start ? end - source->start : 0;
}

static void print_source(const struct image_source *source)
{
	char size[SIZE_TEXT], parent[24] = "-";

	if (source->origin.parent)
		snprintf(parent, sizeof(parent), "0x%016" PRIx64, source->origin.parent);
	printf("%10" PRIu64 "  0x%016" PRIx64 "  %18s  %9s  ", source->origin.generation, source->origin.id, parent,
	       size_text(bytes_of(source), size));
	print_clean(source->file->name, strlen(source->file->name));
	putchar('\n');
}

static void print_source_json(const struct image_source *source, bool is_first)
{
	printf("%s\n{\"file\":", is_first ? "" : ",");
	print_json_string(source->file->name);
	printf(",\"offset\":%" PRIu64 ",\"size\":%" PRIu64 ",\"version\":%" PRIu32 ",\"identity\":%" PRIu64
	       ",\"parent\":%" PRIu64 ",\"generation\":%" PRIu64 ",\"followed\":%s}", source->start,
	       bytes_of(source), source->origin.version, source->origin.id, source->origin.parent, source->origin.generation,
	       source->origin.flags & IMAGE_FOLLOWED ? "true" : "false");
}

/* Before the first line of JSON it is known that there is no failure. */
static void print_sources_json(const struct options *options)
{
	struct image_chain *chains = check_memory(calloc(options->file_count, sizeof(*chains)));

	for (size_t i = 0; i < options->file_count; i++)
		chain_add(&chains[i], &options->files[i]);
	printf("{\"schema\":1,\"images\":[");
	for (size_t i = 0; i < options->file_count; i++) {
		for (size_t k = 0; k < chains[i].count; k++)
			print_source_json(&chains[i].sources[k], !i && !k);
		chain_free(&chains[i]);
	}
	printf("]}\n");
	free(chains);
}

/* A file may end before a sequence does: what is there is told. */
static void print_sources(const struct options *options)
{
	printf("%10s  %-18s  %-18s  %9s  %s\n", "generation", "identity", "parent", "size", "file");
	for (size_t i = 0; i < options->file_count; i++) {
		struct image_chain chain = { .found = print_source };

		chain_add(&chain, &options->files[i]);
		chain_free(&chain);
	}
}

/* Whether the file has several images; a negative errno: it has none. */
static int is_followed(const struct image_file *file)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = file->offset);
	GMEM_OPTS(gmem_image_summary, info, .id = 0);
	int err = gmem_image_info(file->fd, &opts, &info, NULL, 0);

	return err < 0 ? err : (info.flags & GMEM_IMAGE_FOLLOWED) != 0;
}

static enum exit_status tell_info(const struct options *options)
{
	const bool is_one = options->file_count == 1 &&
			    (options->command == COMMAND_REGIONS || !options->files->size ||
			     is_followed(options->files) <= 0);
	int err;

	if (is_one)
		return tell_one(options);
	for (size_t i = 0; i < options->file_count; i++) {
		err = is_followed(&options->files[i]);
		if (err < 0)
			return fail(options, &options->files[i], err);
	}
	if (options->json)
		print_sources_json(options);
	else
		print_sources(options);
	return EXIT_FINE;
}

/* ---- progress ---- */

struct watcher watcher_new(void)
{
	return (struct watcher){ .wants = isatty(STDERR_FILENO), .last = time(NULL) };
}

int watcher_tell(void *data, uint64_t done, uint64_t total)
{
	struct watcher *watcher = data;
	char done_text[SIZE_TEXT], total_text[SIZE_TEXT];
	time_t now;

	if (!watcher->wants)
		return 0;
	now = time(NULL);
	if (now == watcher->last)
		return 0;
	watcher->last = now;
	watcher->has_line = true;
	if (total)
		fprintf(stderr, "\r%3.0f%% of %s \033[K", (double)done * 100 / (double)total,
			size_text(total, total_text));
	else
		fprintf(stderr, "\r%s \033[K", size_text(done, done_text));
	return 0;
}

void watcher_end(struct watcher *watcher)
{
	if (watcher->has_line)
		fputs("\r\033[K", stderr);
	watcher->has_line = false;
}

/* ---- verify ---- */

#define MAX_LOST 16

static void tell_lost(void *data, uint64_t gpa, uint64_t size)
{
	struct watcher *watcher = data;
	char text[SIZE_TEXT];

	if (watcher->lost++ < MAX_LOST)
		printf("lost: 0x%" PRIx64 ", %s\n", gpa, size_text(size, text));
}

/* How much there is. In images that are based on each other, what changes twice counts twice. */
static void print_whole(const struct options *options, const struct gmem_transfer_result *result)
{
	const struct image_file *file = &options->files[options->file_count - 1];
	uint64_t memory = result->data_bytes + result->zero_bytes + result->lost_bytes;
	char text[SIZE_TEXT], contents[SIZE_TEXT];

	print_clean(file->name, strlen(file->name));
	if (options->file_count > 1)
		printf(": it is whole, and so are those that it is based on: %s of contents in %zu files\n",
		       size_text(result->data_bytes, contents), options->file_count);
	else if (result->generation)
		printf(": it is whole: %s of contents, up to generation %" PRIu64 "\n",
		       size_text(result->data_bytes, contents), result->generation);
	else
		printf(": the image is whole: %s of memory, %s of it not zero\n", size_text(memory, text),
		       size_text(result->data_bytes, contents));
}

static void print_result(const struct options *options, const struct gmem_transfer_result *result,
			 unsigned int lost)
{
	char text[SIZE_TEXT];

	if (lost > MAX_LOST)
		printf("and %u more ranges\n", lost - MAX_LOST);
	print_whole(options, result);
	if (result->lost_bytes)
		printf("%s was lost by the hardware before it was saved\n",
		       size_text(result->lost_bytes, text));
	if (result->private_bytes)
		printf("%s more was private to the guest, and is not in the image\n",
		       size_text(result->private_bytes, text));
	if (result->left_out_bytes)
		printf("%s more of kind device or external is not in the image\n",
		       size_text(result->left_out_bytes, text));
}

/* Verify a file together with those that it is based on, in the order of the command line. */
static int verify_chain(const struct options *options, const struct image_file *file, size_t parents,
			gmem_transfer_lost_fn lost, struct watcher *watcher,
			struct gmem_transfer_result *ret)
{
	int *fds = check_memory(calloc(parents + 1, sizeof(*fds)));
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = options->offset, .progress = watcher_tell,
		  .progress_data = watcher, .lost = lost, .lost_data = watcher,
		  .workers = (uint32_t)options->workers,
		  .flags = options->allow_lost ? GMEM_TRANSFER_ALLOW_LOST : 0,
		  .parents = parents ? fds : NULL, .parent_count = (uint32_t)parents);
	int err;

	for (size_t i = 0; i < parents; i++)
		fds[i] = options->files[i].fd;
	err = gmem_image_verify(file->fd, &opts, ret);
	watcher_end(watcher);
	free(fds);
	return err;
}

/* Ends the program with the names of the files that do not fit: the library knows none. */
static void name_the_link(const struct options *options)
{
	struct image_chain chain = { 0 };

	for (size_t i = 0; i < options->file_count; i++)
		chain_add(&chain, &options->files[i]);
	chain_free(&chain);
}

static enum exit_status verify(const struct options *options)
{
	const size_t parents = options->file_count - 1;
	struct watcher watcher = watcher_new();
	GMEM_OPTS(gmem_transfer_result, result, .file_bytes = 0);
	int err = verify_chain(options, &options->files[parents], parents, tell_lost, &watcher, &result);

	if (err == -ENOLINK)
		name_the_link(options);
	if (err)
		return fail(options, &options->files[parents], err);
	print_result(options, &result, watcher.lost);
	return EXIT_FINE;
}

void verify_alone(const struct options *options, const struct image_file *file)
{
	struct watcher watcher = watcher_new();
	int err = verify_chain(options, file, 0, NULL, &watcher, NULL);

	if (err)
		exit((int)fail(options, file, err));
}

static enum exit_status run(const struct options *options)
{
	if (!open_images(options))
		return EXIT_NO_IMAGE;
	switch (options->command) {
	case COMMAND_VERIFY:
		return verify(options);
	case COMMAND_MERGE:
		return merge(options);
	case COMMAND_DIFF:
		return diff(options);
	default:
		return tell_info(options);
	}
}

int main(int argc, char **argv)
{
	struct options options = { 0 };
	int status;

	parse_options(argc, argv, &options);
	status = (int)run(&options);
	if (fflush(stdout) || ferror(stdout)) {
		print_error("standard output: %s", strerror(errno));
		status = EXIT_NO_IMAGE;
	}
	free(options.files);
	free(options.parents);
	return status;
}
