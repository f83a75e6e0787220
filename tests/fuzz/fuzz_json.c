/* SPDX-License-Identifier: MIT */
/*
 * Dumps that nobody wrote, to gmem-show; and names from outside in a report of gmem-probe.
 *
 * The input is JSON, or numbers and strings that are put into a dump where a dump has them.
 * Whatever comes of it: what is printed, refusals too, is text that does nothing to a terminal;
 * the SVG is well-formed; the JSON is JSON, and printing what it says prints it again.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "fuzz.h"
#include "tools/layout.h"
#include "tools/probe.h"
#include "tools/reader.h"

static struct fuzz_input input;

static unsigned take(void)
{
	return fuzz_take(&input);
}

/* ---- what was printed ---- */

struct printed {
	FILE *before;
	char *text;
	size_t size;
};

static void catch(struct printed *printed)
{
	printed->before = stdout;
	stdout = open_memstream(&printed->text, &printed->size);
	CHECK(stdout);
}

static void release(struct printed *printed)
{
	fclose(stdout);
	stdout = printed->before;
}

/* Bytes of a colour; @s begins with the escape character. */
static size_t color_size(const char *s)
{
	size_t digits = s[1] == '[' ? strspn(s + 2, "0123456789") : 0;

	return digits && digits <= 2 && s[2 + digits] == 'm' ? digits + 3 : 0;
}

static void check_text(const char *s, size_t size, bool has_color)
{
	const char *end = s + size;
	unsigned int length;
	uint32_t code;

	for (; s < end; s += length) {
		if (has_color && *s == '\033' && color_size(s)) {
			length = (unsigned int)color_size(s);
			continue;
		}
		length = gmem_utf8_next(s, &code);
		CHECK(length && (code == '\n' || gmem_utf8_is_harmless(code)));
	}
}

/* ---- SVG: elements that end, and attributes and text without stray signs ---- */

#define MAX_DEPTH 8

static const char *check_tag(const char *s, const char *open[MAX_DEPTH], unsigned *depth)
{
	const char *end = strchr(s, '>');
	bool closes = s[1] == '/';
	size_t name = strcspn(s + 1 + closes, " />");

	CHECK(end && name && !memchr(s + 1, '<', (size_t)(end - s - 1)));
	if (closes) {
		CHECK(*depth && !strncmp(open[*depth - 1], s + 2, name));
		(*depth)--;
	} else if (end[-1] != '/') {
		CHECK(*depth < MAX_DEPTH);
		open[(*depth)++] = s + 1;
	}
	return end + 1;
}

static void check_svg(const char *s)
{
	const char *open[MAX_DEPTH];
	unsigned depth = 0;

	do {
		CHECK(*s);
		if (*s == '<') {
			s = check_tag(s, open, &depth);
			continue;
		}
		CHECK(*s != '&' || !strncmp(s, "&amp;", 5) || !strncmp(s, "&lt;", 4) ||
		      !strncmp(s, "&gt;", 4));
		s++;
	} while (depth);
	CHECK(!strcmp(s, "\n"));
}

/* ---- gmem-show ---- */

static bool read_dump(const char *text, size_t size, struct document *document,
		      struct layout *layout, char *error, size_t room)
{
	const struct json *root;

	*layout = (struct layout){ 0 };
	if (!read_json(text, size, document)) {
		snprintf(error, room, "%s", document->error);
		return false;
	}
	root = find_member(document->root->type == JSON_OBJECT ? document->root : &(struct json){ 0 }, "dump");
	return take_layout(root ? root : document->root, layout, error, room);
}

static void print_as_json(const struct layout *layout, struct printed *printed)
{
	catch(printed);
	print_layout_json(layout);
	release(printed);
}

static void check_json(const struct layout *layout)
{
	struct printed once, twice;
	struct document document;
	struct layout again;
	char error[200];

	print_as_json(layout, &once);
	check_text(once.text, once.size, false);
	CHECK(read_dump(once.text, once.size, &document, &again, error, sizeof(error)));
	print_as_json(&again, &twice);
	CHECK(once.size == twice.size && !memcmp(once.text, twice.text, once.size));
	free_layout(&again);
	free_document(&document);
	free(once.text);
	free(twice.text);
}

static void check_pictures(const struct layout *layout)
{
	unsigned how = take();
	const struct style style = { .width = 32 + take() % 200, .color = how & 1, .unicode = how & 2,
				     .every_region = how & 4 };
	struct printed printed;

	catch(&printed);
	print_picture(layout, &style);
	release(&printed);
	check_text(printed.text, printed.size, style.color);
	free(printed.text);

	catch(&printed);
	print_svg(layout);
	release(&printed);
	check_text(printed.text, printed.size, false);
	check_svg(printed.text);
	free(printed.text);
}

static void show(const char *text, size_t size)
{
	struct document document;
	struct layout layout;
	char error[200] = "";

	if (read_dump(text, size, &document, &layout, error, sizeof(error))) {
		check_pictures(&layout);
		check_json(&layout);
	} else {
		CHECK(*error);
		check_text(error, strlen(error), false);
	}
	free_layout(&layout);
	free_document(&document);
}

/* ---- a dump of the input's numbers and strings ---- */

static void put_number(FILE *out, const char *name, uint64_t sensible)
{
	static const uint64_t numbers[] = { 0, 1, 4095, 4096, 1 << 20, (uint64_t)1 << 32, UINT64_MAX - 1,
					    UINT64_MAX };
	unsigned which = take();

	fprintf(out, ",\"%s\":", name);
	if (which < 232)
		fprintf(out, "%" PRIu64, sensible);
	else if (which < 240)
		fprintf(out, "%" PRIu64, numbers[which % 8]);
	else
		fputs(which < 248 ? "null" : which < 252 ? "-1.5e3" : "18446744073709551616", out);
}

/* Any bytes, as they are or escaped */
static void put_string(FILE *out, const char *name, const char *sensible)
{
	unsigned how = take(), length = how < 96 ? 0 : take() % 24;

	fprintf(out, ",\"%s\":\"%s", name, length ? "" : sensible);
	while (length--) {
		unsigned byte = take();

		if (how & 1 || byte < 0x20 || byte == '"' || byte == '\\')
			fprintf(out, "\\u%02x%02x", how & 2 ? take() : 0, byte);
		else
			fputc((int)byte, out);
	}
	fputc('"', out);
}

static void put_piece(FILE *out, uint64_t gpa, uint64_t size)
{
	fprintf(out, "{\"x\":0");
	put_number(out, "gpa", gpa);
	put_number(out, "size", size);
	put_number(out, "private", take() % 2 * size);
	put_number(out, "shared_resident", take() % 8 * size / 8);
	put_number(out, "private_resident", take() % 8 * size / 8);
	fprintf(out, ",\"nodes\":[");
	for (unsigned n = take() % 3, first = 1; n--; first = 0) {
		fprintf(out, "%s{\"x\":0", first ? "" : ",");
		put_number(out, "node", take() % 40);
		put_number(out, "pages", take() % 4);
		fputc('}', out);
	}
	fprintf(out, "]}");
}

static void put_region(FILE *out, uint64_t gpa, uint64_t size)
{
	static const char *const backings[] = { "shared", "private", "device", "host", "in-place" };
	unsigned how = take(), pieces = how & 7;

	fprintf(out, "{\"lost\":%s,\"readonly\":%s,\"dirty_log\":%s", how & 8 ? "true" : "false",
		how & 16 ? "true" : "false", how & 32 ? "true" : "false");
	put_number(out, "gpa", gpa);
	put_number(out, "size", size);
	put_string(out, "backing", backings[take() % 5]);
	put_number(out, "slot", 3);
	put_number(out, "hva", 0x7f0000000000);
	if (how & 64) {
		fprintf(out, ",\"file\":{\"x\":0");
		put_number(out, "fd", 7);
		put_number(out, "size", size);
		put_number(out, "offset", 4096);
		put_number(out, "create_flags", 3);
		fputc('}', out);
	} else {
		fprintf(out, ",\"file\":null");
	}
	fprintf(out, ",\"ranges\":[");
	for (unsigned i = 0; i < pieces; i++) {
		if (i)
			fputc(',', out);
		put_piece(out, gpa + i * size / 8, size / 8);
	}
	fprintf(out, "]}");
}

static void put_regions(FILE *out, const char *name, unsigned count)
{
	uint64_t gpa = take() % 4 * 4096, size;

	fprintf(out, ",\"%s\":[", name);
	for (unsigned i = 0; i < count; i++) {
		size = (uint64_t)8 * 4096 << take() % 40;
		if (i)
			fputc(',', out);
		put_region(out, gpa, size);
		gpa += size + take() % 2 * 4096;
	}
	fputc(']', out);
}

static void make_dump(struct printed *ret)
{
	FILE *out = open_memstream(&ret->text, &ret->size);

	CHECK(out);
	fprintf(out, "{\"gmem_dump\":1");
	put_string(out, "library", "0.1.0");
	put_string(out, "name", "x");
	put_string(out, "architecture", "x86_64");
	put_number(out, "page_size", 4096);
	put_number(out, "address_bits", 46);
	put_number(out, "memslots", 32764);
	put_regions(out, "regions", take() % 32 ? take() % 6 : 20);
	put_regions(out, "stuck", take() % 8 ? 0 : 2);
	fprintf(out, ",\"leases\":[");
	for (unsigned n = take() % 4, first = 1; n--; first = 0) {
		fprintf(out, "%s{\"x\":0", first ? "" : ",");
		put_number(out, "gpa", 4097);
		put_number(out, "size", 100);
		put_string(out, "holder", "disk");
		fputc('}', out);
	}
	fprintf(out, "]}");
	fclose(out);
}

/* ---- gmem-probe ---- */

static char *take_string(void)
{
	size_t length = take() % 40, i;
	char *s = malloc(length + 1);

	CHECK(s);
	for (i = 0; i < length; i++)
		s[i] = (char)take();
	s[length] = '\0';
	return s;
}

static void probe(void)
{
	struct gmem_finding findings[GMEM_CAP_COUNT] = { { .name = "x" } };
	struct report report = { .findings = findings, .finding_count = GMEM_CAP_COUNT };
	char *name = take_string(), *reason = take_string();
	struct document document;
	struct printed printed;

	for (uint32_t i = 0; i < GMEM_CAP_COUNT; i++)
		findings[i] = (struct gmem_finding){ .name = "x", .title = name, .reason = reason,
						     .remedy = i & 1 ? name : NULL, .answer = i % 3 };
	for (uint32_t i = 0; i < BACKING_COUNT; i++)
		report.backings[i] = (struct backing){ .name = gmem_backing_name(i + 1), .reason = reason,
						       .answer = i % 3 };
	report.has_vm = take() & 1;
	report.note = take() & 1 ? reason : NULL;

	catch(&printed);
	print_table(&report, 40 + take(), false);
	release(&printed);
	check_text(printed.text, printed.size, false);
	free(printed.text);

	catch(&printed);
	print_json(&report);
	release(&printed);
	check_text(printed.text, printed.size, false);
	CHECK(read_json(printed.text, printed.size, &document));
	free_document(&document);
	free(printed.text);
	free(name);
	free(reason);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct printed dump;
	char *text;

	input = (struct fuzz_input){ data, size };
	switch (take() % 4) {
	case 0:
		probe();
		break;
	case 1:
		/* with a NUL after it, as gmem-show reads a file */
		text = malloc(input.left + 1);
		CHECK(text);
		memcpy(text, input.data, input.left);
		text[input.left] = '\0';
		show(text, input.left);
		free(text);
		break;
	default:
		make_dump(&dump);
		show(dump.text, dump.size);
		free(dump.text);
	}
	return 0;
}
