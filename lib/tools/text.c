/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/utf8.h"
#include "text.h"

#define EXIT_NO_MEMORY 3

void *check_memory(void *p)
{
	if (!p) {
		fprintf(stderr, "%s: out of memory\n", program_invocation_short_name);
		exit(EXIT_NO_MEMORY);
	}
	return p;
}

void usage_exit(void)
{
	fprintf(stderr, "Try '%s --help'.\n", program_invocation_short_name);
	exit(EXIT_USAGE);
}

__attribute__((format(printf, 1, 0)))
static void vcomplain(const char *format, va_list args)
{
	char *text = NULL;

	if (vasprintf(&text, format, args) < 0)
		text = NULL;
	gmem_utf8_clean(check_memory(text));
	fprintf(stderr, "%s: %s\n", program_invocation_short_name, text);
	free(text);
}

void print_error(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vcomplain(format, args);
	va_end(args);
}

void usage_error(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vcomplain(format, args);
	va_end(args);
	usage_exit();
}

void refuse_option(const char *argument)
{
	if (optopt > 0 && optopt < 256)
		usage_error("-%c: no such option", optopt);
	/* getopt_long() sets optopt only for an option that it knows. */
	if (!optopt)
		usage_error("%s: no such option, or the beginning of several; see --help", argument);
	if (strchr(argument, '='))
		usage_error("%s: this option takes no value", argument);
	usage_error("%s: a value must follow; see --help", argument);
}

void print_json_string(const char *s)
{
	char escape[GMEM_UTF8_ESCAPE];
	unsigned int length;
	uint32_t code;

	if (!s) {
		fputs("null", stdout);
		return;
	}

	putchar('"');
	for (; (length = gmem_utf8_next(s, &code)); s += length) {
		if (code == '"' || code == '\\')
			printf("\\%c", *s);
		else if (gmem_utf8_is_harmless(code))
			fwrite(s, 1, length, stdout);
		else
			fputs(gmem_utf8_escape(code, escape), stdout);
	}
	putchar('"');
}

unsigned int columns(const char *s, size_t size)
{
	const char *end = s + size;
	unsigned int n = 0;
	uint32_t code;

	for (; s < end; n++)
		s += gmem_utf8_next(s, &code);
	return n;
}

size_t first_columns(const char *s, unsigned int max)
{
	const char *start = s;
	uint32_t code;

	while (max-- && *s)
		s += gmem_utf8_next(s, &code);
	return (size_t)(s - start);
}

void print_clean(const char *s, size_t size)
{
	const char *end = s + size;
	unsigned int length;
	uint32_t code;

	for (; s < end; s += length) {
		length = gmem_utf8_next(s, &code);
		if (gmem_utf8_is_harmless(code))
			fwrite(s, 1, length, stdout);
		else
			putchar('?');
	}
}

bool parse_color(const char *text, enum color *ret)
{
	static const char *const names[] = {
		[COLOR_AUTO] = "auto",
		[COLOR_ALWAYS] = "always",
		[COLOR_NEVER] = "never",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (!strcmp(text, names[i])) {
			*ret = (enum color)i;
			return true;
		}
	}
	return false;
}

bool use_color(enum color color)
{
	const char *no_color = getenv("NO_COLOR");

	if (color != COLOR_AUTO)
		return color == COLOR_ALWAYS;
	return isatty(STDOUT_FILENO) && !(no_color && *no_color);
}

unsigned int terminal_width(void)
{
	const char *from_shell = getenv("COLUMNS");
	struct winsize size;
	long width = 0;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col)
		width = size.ws_col;
	else if (from_shell)
		width = strtol(from_shell, NULL, 10);
	return width > 0 && width < 10000 ? (unsigned int)width : 80;
}

const char *size_text(uint64_t bytes, char *buf)
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	unsigned int unit = 0;
	uint64_t scale = 1;

	while (unit < 6 && bytes / scale >= 1024) {
		scale *= 1024;
		unit++;
	}
	if (bytes % scale == 0)
		snprintf(buf, SIZE_TEXT, "%" PRIu64 " %s", bytes / scale, units[unit]);
	else
		snprintf(buf, SIZE_TEXT, bytes / scale < 10 ? "%.2f %s" : bytes / scale < 100 ? "%.1f %s"
			 : "%.0f %s", (double)bytes / (double)scale, units[unit]);
	return buf;
}
