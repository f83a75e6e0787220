/* SPDX-License-Identifier: MIT */
/* gmem-show: draws a picture of a VM's memory, from a dump by gmem_vm_dump(). */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gmem.h"
#include "layout.h"
#include "reader.h"
#include "socket.h"
#include "text.h"
#include "watch.h"

enum exit_status {
	EXIT_FINE = 0,
	EXIT_BROKEN = 1,	/* the layout has memslots that are lost or stuck */
	EXIT_NO_DUMP = 3,
};

/* How long a program may take to begin its answer, or to go on with it */
#define ANSWER_SECONDS 10

enum output { OUTPUT_PICTURE, OUTPUT_JSON, OUTPUT_SVG, OUTPUT_NOTHING };

struct options {
	const char *path;
	const char *socket;		/* NULL: a file */
	double seconds;			/* from one picture to the next; 0: one alone */
	enum output output;
	enum color color;
	struct style style;
};

static const char help[] =
	"Usage: gmem-show [OPTION]... [FILE | --socket PATH [--watch SECONDS]]\n"
	"Show a VM's memory, from a dump in FILE, on standard input, or from a program\n"
	"that runs a VM and serves dumps on a socket.\n"
	"\n"
	"  --socket PATH    ask the program that listens at this Unix socket\n"
	"  --watch SECONDS  show it again and again, until Ctrl-C or the program's end\n"
	"  --svg            write a picture as SVG\n"
	"  --json           write JSON: sums, and the dump made clean; see gmem-show(1)\n"
	"  --quiet          write nothing: the exit status tells\n"
	"  --all            a picture of every region, however many there are\n"
	"  --ascii          draw with ASCII\n"
	"  --unicode        draw with block elements, whatever the locale\n"
	"  --width COLUMNS  of the picture, instead of the terminal's\n"
	"  --color=WHEN     \"auto\", \"always\" or \"never\"\n"
	"  -V, --version    print the version of libgmem\n"
	"  -h, --help       print this\n"
	"\n"
	"Exit status: 0 fine, 1 the layout has memslots that are lost or stuck,\n"
	"2 wrong usage, 3 there is no dump, or it is broken.\n";

static unsigned int parse_width(const char *text)
{
	unsigned long width;
	char *end;

	errno = 0;
	width = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || width < 32 || width > 1000)
		usage_error("--width %s: columns, from 32 to 1000", text);
	return (unsigned int)width;
}

static double parse_seconds(const char *text)
{
	double seconds;
	char *end;

	seconds = strtod(text, &end);
	if (*text < '0' || *text > '9' || *end || !(seconds >= 0.1 && seconds <= 3600))
		usage_error("--watch %s: seconds, from 0.1 to 3600", text);
	return seconds;
}

static void set_output(struct options *options, enum output output)
{
	if (options->output != OUTPUT_PICTURE && options->output != output)
		usage_error("--svg, --json and --quiet exclude each other");
	options->output = output;
}

enum {
	OPTION_SVG = 256,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_ALL,
	OPTION_ASCII,
	OPTION_UNICODE,
	OPTION_WIDTH,
	OPTION_COLOR,
	OPTION_SOCKET,
	OPTION_WATCH,
};

static const struct option known_options[] = {
	{ "svg", no_argument, NULL, OPTION_SVG },
	{ "json", no_argument, NULL, OPTION_JSON },
	{ "quiet", no_argument, NULL, OPTION_QUIET },
	{ "all", no_argument, NULL, OPTION_ALL },
	{ "ascii", no_argument, NULL, OPTION_ASCII },
	{ "unicode", no_argument, NULL, OPTION_UNICODE },
	{ "width", required_argument, NULL, OPTION_WIDTH },
	{ "color", required_argument, NULL, OPTION_COLOR },
	{ "socket", required_argument, NULL, OPTION_SOCKET },
	{ "watch", required_argument, NULL, OPTION_WATCH },
	{ "version", no_argument, NULL, 'V' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static void take_option(int option, const char *argument, struct options *options)
{
	switch (option) {
	case OPTION_SVG:
		set_output(options, OUTPUT_SVG);
		break;
	case OPTION_JSON:
		set_output(options, OUTPUT_JSON);
		break;
	case OPTION_QUIET:
		set_output(options, OUTPUT_NOTHING);
		break;
	case OPTION_ALL:
		options->style.every_region = true;
		break;
	case OPTION_ASCII:
		options->style.unicode = false;
		break;
	case OPTION_UNICODE:
		options->style.unicode = true;
		break;
	case OPTION_WIDTH:
		options->style.width = parse_width(optarg);
		break;
	case OPTION_COLOR:
		if (!parse_color(optarg, &options->color))
			usage_error("--color %s: auto, always or never", optarg);
		break;
	case OPTION_SOCKET:
		options->socket = optarg;
		break;
	case OPTION_WATCH:
		options->seconds = parse_seconds(optarg);
		break;
	case 'V':
		printf("gmem-show %s\n", gmem_version());
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

	if (optind + 1 < argc)
		usage_error("%s: one dump at a time", argv[optind + 1]);
	options->path = argv[optind];
	if (options->socket && options->path)
		usage_error("%s: a dump from a socket or from a file, not both", options->path);
	if (options->seconds > 0 && !options->socket)
		usage_error("--watch needs --socket");
	if (options->seconds > 0 && (options->output == OUTPUT_SVG || options->output == OUTPUT_NOTHING))
		usage_error("--watch shows pictures in the terminal, or JSON");
	options->style.color = use_color(options->color);
}

/* ---- the dump ---- */

static int open_dump(const char *path)
{
	int fd;

	if (!path || !strcmp(path, "-"))
		return STDIN_FILENO;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		print_error("%s: %s", path, strerror(errno));
	return fd;
}

static enum exit_status show_layout(const struct options *options, const struct layout *layout)
{
	bool broken = layout->stuck_count > 0;

	switch (options->output) {
	case OUTPUT_PICTURE:
		print_picture(layout, &options->style);
		break;
	case OUTPUT_JSON:
		print_layout_json(layout);
		break;
	case OUTPUT_SVG:
		print_svg(layout);
		break;
	case OUTPUT_NOTHING:
		break;
	}

	for (size_t i = 0; i < layout->region_count; i++)
		broken |= layout->regions[i].lost;
	return broken ? EXIT_BROKEN : EXIT_FINE;
}

static enum exit_status show_text(const struct options *options, const char *text, size_t size)
{
	enum exit_status status = EXIT_NO_DUMP;
	struct document document;
	struct layout layout;
	char error[200];

	if (size == 0) {
		print_error("the dump is empty");
		return EXIT_NO_DUMP;
	}

	if (size >= 8 && !memcmp(text, "GMEMHEAD", 8)) {
		print_error("this is an image, and no dump; see gmem-image");
		return EXIT_NO_DUMP;
	}
	if (!read_json(text, size, &document)) {
		print_error("this is no JSON: %s", document.error);
		free_document(&document);
		return EXIT_NO_DUMP;
	}
	if (take_layout(document.root, &layout, error, sizeof(error)))
		status = show_layout(options, &layout);
	else
		print_error("this is no dump: %s", error);
	free_layout(&layout);
	free_document(&document);
	return status;
}

static int show_again(void *data, const char *text, size_t size)
{
	struct options options = *(const struct options *)data;

	/* The terminal's, which may have changed */
	if (!options.style.width)
		options.style.width = terminal_width();
	return (int)show_text(&options, text, size);
}

/* Returns NULL after printing a message. */
static char *take_dump(const struct options *options, size_t *ret_size)
{
	struct answered answered;
	int fd;

	if (!options->socket) {
		fd = open_dump(options->path);
		return fd < 0 ? NULL : read_whole(fd, ret_size);
	}
	ask_for_dump(options->socket, ANSWER_SECONDS, NULL, &answered);
	if (answered.answer != ANSWER_DUMP)
		print_error("%s: %s", options->socket, answered.error);
	*ret_size = answered.size;
	return answered.text;
}

static int show_once(struct options *options)
{
	int status = EXIT_NO_DUMP;
	size_t size;
	char *text = take_dump(options, &size);

	if (text)
		status = show_again(options, text, size);
	free(text);
	return status;
}

static int show_all_the_time(struct options *options)
{
	const struct watch watch = {
		.path = options->socket,
		.seconds = options->seconds,
		.has_head = options->output == OUTPUT_PICTURE,
		.show = show_again,
		.data = options,
	};

	return watch_socket(&watch, EXIT_NO_DUMP);
}

int main(int argc, char **argv)
{
	struct options options = { 0 };
	int status;

	setlocale(LC_CTYPE, "");
	options.style.unicode = !strcmp(nl_langinfo(CODESET), "UTF-8");
	parse_options(argc, argv, &options);
	status = options.seconds > 0 ? show_all_the_time(&options) : show_once(&options);

	if (fflush(stdout) || ferror(stdout)) {
		print_error("standard output: %s", strerror(errno));
		status = EXIT_NO_DUMP;
	}
	return status;
}
