/* SPDX-License-Identifier: MIT */
/* gmem-image: tells what an image of a VM's memory has, and whether it is whole. */
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
#include "text.h"

enum exit_status {
	EXIT_FINE = 0,
	EXIT_DAMAGED = 1,	/* an image that cannot be restored as it is */
	EXIT_NO_IMAGE = 3,
};

/* No image has more: see gmem_image_info(). */
#define MAX_REGIONS 131072

enum command { COMMAND_INFO, COMMAND_REGIONS, COMMAND_VERIFY, COMMANDS };

static const char *const command_names[COMMANDS] = {
	[COMMAND_INFO] = "info",
	[COMMAND_REGIONS] = "regions",
	[COMMAND_VERIFY] = "verify",
};

struct options {
	enum command command;
	const char *path;
	const char *name;		/* of the file, for messages */
	uint64_t offset;
	bool json;
	bool allow_lost;
	uint64_t workers;
};

static const char help[] =
	"Usage: gmem-image info|regions|verify [OPTION]... FILE\n"
	"Tell about an image of a VM's memory. FILE may be \"-\" for standard input.\n"
	"\n"
	"  info             what the image has, in a few lines\n"
	"  regions          its regions, one a line\n"
	"  verify           read all of it: is it whole?\n"
	"\n"
	"  --offset BYTES   where in FILE the image begins; 0x is understood\n"
	"  --json           info, regions: write JSON, see gmem-image(1)\n"
	"  --allow-lost     verify: accept an image without pages that the hardware lost\n"
	"  --workers N      verify: with N threads\n"
	"  -V, --version    print the version of libgmem\n"
	"  -h, --help       print this\n"
	"\n"
	"Exit status: 0 fine, 1 the image is damaged or not complete, 2 wrong usage,\n"
	"3 this is no image, or of another version, or it cannot be read.\n";

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
	usage_error("%s: no such command; there are info, regions and verify", text);
}

enum { OPTION_OFFSET = 256, OPTION_JSON, OPTION_ALLOW_LOST, OPTION_WORKERS };

static const struct option known_options[] = {
	{ "offset", required_argument, NULL, OPTION_OFFSET },
	{ "json", no_argument, NULL, OPTION_JSON },
	{ "allow-lost", no_argument, NULL, OPTION_ALLOW_LOST },
	{ "workers", required_argument, NULL, OPTION_WORKERS },
	{ "version", no_argument, NULL, 'V' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static void take_option(int option, const char *argument, struct options *options)
{
	switch (option) {
	case OPTION_OFFSET:
		options->offset = parse_number("--offset", optarg, UINT64_MAX, "bytes");
		break;
	case OPTION_JSON:
		options->json = true;
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

static void parse_options(int argc, char **argv, struct options *options)
{
	int option;

	opterr = 0;
	while ((option = getopt_long(argc, argv, "hV", known_options, NULL)) != -1)
		take_option(option, argv[optind - 1], options);

	if (optind == argc)
		usage_error("what is to be done? info, regions or verify");
	options->command = parse_command(argv[optind]);
	if (optind + 1 == argc)
		usage_error("%s: which file? \"-\" is standard input", argv[optind]);
	if (optind + 2 < argc)
		usage_error("%s: one image at a time", argv[optind + 2]);
	options->path = argv[optind + 1];
	options->name = strcmp(options->path, "-") ? options->path : "standard input";

	if (options->json && options->command == COMMAND_VERIFY)
		usage_error("--json is for info and regions; the exit status of verify tells");
	if (options->allow_lost && options->command != COMMAND_VERIFY)
		usage_error("--allow-lost is for verify");
	if (options->workers && options->command != COMMAND_VERIFY)
		usage_error("--workers is for verify");
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
static void suggest(const struct options *options, const unsigned char first[8])
{
	static const struct { const char *magic; size_t size; const char *program; } packers[] = {
		{ "\x28\xb5\x2f\xfd", 4, "zstd" },
		{ "\x1f\x8b", 2, "gzip" },
		{ "\xfd" "7zXZ", 5, "xz" },
		{ "\x04\x22\x4d\x18", 4, "lz4" },
	};

	char *word = shell_word(options->path);

	for (size_t i = 0; i < GMEM_ARRAY_SIZE(packers); i++)
		if (!memcmp(first, packers[i].magic, packers[i].size))
			print_error("It is compressed with %s. Try: %s -dc %s | gmem-image %s -",
				    packers[i].program, packers[i].program, word,
				    command_names[options->command]);
	if (!memcmp(first, "{\"gmem_d", 8))
		print_error("It looks like a dump. Try: gmem-show %s", word);
	free(word);
}

static enum exit_status fail(const struct options *options, int fd, int err)
{
	unsigned char first[8] = { 0 };
	const char *what = err == -EBADMSG ? "damaged: " : err == -ENODATA ? "not complete: " :
			   err == -EHWPOISON ? "not whole: " : "";

	print_error("%s: %s%s", options->name, what, gmem_last_error());
	if (err == -ENOMSG && pread(fd, first, sizeof(first), (off_t)options->offset) > 0)
		suggest(options, first);
	return *what ? EXIT_DAMAGED : EXIT_NO_IMAGE;
}

/* Returns -1 after saying why there is no image in the file. */
static int open_image(const struct options *options, uint64_t *ret_size)
{
	int fd = strcmp(options->path, "-") ? open(options->path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		print_error("%s: %s", options->name, strerror(errno));
	else if (S_ISDIR(st.st_mode))
		print_error("%s: this is a directory, and no image", options->name);
	else if (S_ISREG(st.st_mode) && st.st_size == 0)
		print_error("%s: this is no image: the file is empty", options->name);
	else if (S_ISREG(st.st_mode) && (uint64_t)st.st_size <= options->offset)
		print_error("%s: the file has %jd bytes, and none at offset %" PRIu64, options->name,
			    (intmax_t)st.st_size, options->offset);
	else {
		*ret_size = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
		return fd;
	}
	return -1;
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
	       ",\n\"memory\":%" PRIu64 ",\"private\":%" PRIu64 ",\"left_out\":%" PRIu64
	       ",\n\"regions\":[", info->version, info->id, info->page_size, info->memory_bytes,
	       info->private_bytes, info->left_out_bytes);
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

static enum exit_status tell_info(const struct options *options, int fd, uint64_t file_size)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = options->offset);
	GMEM_OPTS(gmem_image_summary, info, .id = 0);
	struct gmem_image_region *regions = check_memory(calloc(MAX_REGIONS, sizeof(*regions)));
	int count = gmem_image_info(fd, &opts, &info, regions, MAX_REGIONS);
	enum exit_status status = EXIT_FINE;

	if (count < 0)
		status = fail(options, fd, count);
	else if (options->json)
		print_json(&info, regions);
	else if (options->command == COMMAND_INFO)
		print_info(&info, regions, file_size);
	else
		print_regions(&info, regions);
	free(regions);
	return status;
}

/* ---- verify ---- */

struct watcher {
	bool wants;		/* somebody looks at standard error */
	bool has_line;
	time_t last;
	unsigned int lost;	/* ranges told so far */
};

/* Only a terminal is told; a second after the start, and every second from then on. */
static int tell_progress(void *data, uint64_t done, uint64_t total)
{
	struct watcher *watcher = data;
	char done_text[SIZE_TEXT], total_text[SIZE_TEXT];
	time_t now = time(NULL);

	if (!watcher->wants || now == watcher->last)
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

#define MAX_LOST 16

static void tell_lost(void *data, uint64_t gpa, uint64_t size)
{
	struct watcher *watcher = data;
	char text[SIZE_TEXT];

	if (watcher->lost++ < MAX_LOST)
		printf("lost: 0x%" PRIx64 ", %s\n", gpa, size_text(size, text));
}

static void print_result(const struct options *options, const struct gmem_transfer_result *result,
			 unsigned int lost)
{
	uint64_t memory = result->data_bytes + result->zero_bytes + result->lost_bytes;
	char text[SIZE_TEXT], contents[SIZE_TEXT];

	if (lost > MAX_LOST)
		printf("and %u more ranges\n", lost - MAX_LOST);
	print_clean(options->name, strlen(options->name));
	printf(": the image is whole: %s of memory, %s of it not zero\n", size_text(memory, text),
	       size_text(result->data_bytes, contents));
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

static enum exit_status verify(const struct options *options, int fd)
{
	struct watcher watcher = { .wants = isatty(STDERR_FILENO), .last = time(NULL) };
	GMEM_OPTS(gmem_transfer_opts, opts, .image_offset = options->offset, .progress = tell_progress,
		  .progress_data = &watcher, .lost = tell_lost, .lost_data = &watcher,
		  .workers = (uint32_t)options->workers,
		  .flags = options->allow_lost ? GMEM_TRANSFER_ALLOW_LOST : 0);
	GMEM_OPTS(gmem_transfer_result, result, .file_bytes = 0);
	int err = gmem_image_verify(fd, &opts, &result);

	if (watcher.has_line)
		fputs("\r\033[K", stderr);
	if (err)
		return fail(options, fd, err);
	print_result(options, &result, watcher.lost);
	return EXIT_FINE;
}

int main(int argc, char **argv)
{
	struct options options = { 0 };
	uint64_t file_size = 0;
	int fd, status = EXIT_NO_IMAGE;

	parse_options(argc, argv, &options);
	fd = open_image(&options, &file_size);
	if (fd >= 0)
		status = (int)(options.command == COMMAND_VERIFY ? verify(&options, fd)
								 : tell_info(&options, fd, file_size));
	if (fflush(stdout) || ferror(stdout)) {
		print_error("standard output: %s", strerror(errno));
		status = EXIT_NO_IMAGE;
	}
	return status;
}
