/* SPDX-License-Identifier: MIT */
#include <errno.h>
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

void print_json_string(const char *string)
{
	const unsigned char *s = (const unsigned char *)string;
	unsigned int length;

	if (!string) {
		fputs("null", stdout);
		return;
	}

	putchar('"');
	for (; *s; s += length) {
		length = gmem_utf8_length(s);
		if (!length) {
			/* A file name can have any bytes. */
			fputs("\\ufffd", stdout);
			length = 1;
		} else if (*s == '"' || *s == '\\') {
			printf("\\%c", *s);
		} else if (*s < 0x20 || *s == 0x7f) {
			printf("\\u%04x", *s);
		} else {
			fwrite(s, 1, length, stdout);
		}
	}
	putchar('"');
}

static bool is_continuation(char c)
{
	return ((unsigned char)c & 0xc0) == 0x80;
}

unsigned int columns(const char *s, size_t size)
{
	unsigned int n = 0;

	while (size--)
		n += !is_continuation(s[size]);
	return n;
}

void print_clean(const char *s, size_t size)
{
	for (; size--; s++)
		putchar((unsigned char)*s < ' ' || *s == 0x7f ? '?' : *s);
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
