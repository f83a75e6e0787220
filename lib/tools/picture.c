/* SPDX-License-Identifier: MIT */
/* Draws a layout on a terminal. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "layout.h"
#include "text.h"

/* Columns before and after the bar of a region */
#define LABEL 9
#define PERCENT 7

/* With more regions than this, each gets a line instead of a picture. */
#define MANY 16

/* Only this many leases are listed; the others are counted. */
#define MAX_LEASES 8

enum shade { NOTHING, LITTLE, HALF, MUCH, ALL, NOT_KNOWN, SHADES };

static const char *const unicode_shades[SHADES] = { "·", "░", "▒", "▓", "█", "?" };
static const char *const ascii_shades[SHADES] = { ".", "-", "+", "*", "#", "?" };

#define BOLD	"\033[1m"
#define DIM	"\033[2m"
#define RED	"\033[31m"
#define GREEN	"\033[32m"
#define YELLOW	"\033[33m"
#define MAGENTA	"\033[35m"
#define OFF	"\033[0m"

static const char *const node_colors[] = { "\033[36m", "\033[33m", "\033[34m", "\033[35m",
					   "\033[32m", "\033[31m" };
#define NODE_COLORS (sizeof(node_colors) / sizeof(node_colors[0]))

/* ---- words ---- */

static void paint(const struct style *style, const char *color, const char *text)
{
	if (style->color && color)
		printf("%s%s" OFF, color, text);
	else
		fputs(text, stdout);
}

static unsigned int percent(uint64_t part, uint64_t whole)
{
	return whole ? (unsigned int)((double)part * 100 / (double)whole + 0.5) : 0;
}

static const char *mark(const struct style *style, const char *unicode, const char *ascii)
{
	return style->unicode ? unicode : ascii;
}

/* ---- bars ---- */

static enum shade shade_of(const struct cell *cell, int side)
{
	double part;

	if (!cell->known[side])
		return NOT_KNOWN;
	part = cell->resident[side] / cell->size;
	return part <= 0 ? NOTHING : part < 0.34 ? LITTLE : part < 0.67 ? HALF : part < 0.999 ? MUCH : ALL;
}

static const char *side_color(int side)
{
	return side == PRIVATE ? MAGENTA : GREEN;
}

static void print_side_cell(const struct style *style, const struct cell *cell, int side)
{
	enum shade shade = shade_of(cell, side);

	paint(style, shade == NOTHING ? DIM : shade == NOT_KNOWN ? YELLOW : side_color(side),
	      (style->unicode ? unicode_shades : ascii_shades)[shade]);
}

/* s, P or m: the guest uses shared memory, private memory, or both. */
static void print_state_cell(const struct style *style, const struct cell *cell)
{
	if (!cell->state_known)
		paint(style, YELLOW, "?");
	else if (cell->private <= 0)
		paint(style, GREEN, "s");
	else if (cell->private >= cell->size)
		paint(style, MAGENTA, "P");
	else
		paint(style, YELLOW, "m");
}

static void print_node_cell(const struct style *style, const struct cell *cell)
{
	char text[2] = { 0 };

	if (cell->node == UNKNOWN) {
		fputs(" ", stdout);
		return;
	}
	/* 0-9 and a-z; all nodes from 36 on are a "+" */
	text[0] = cell->node < 10   ? (char)('0' + (int)cell->node)
		  : cell->node < 36 ? (char)('a' + (int)cell->node - 10)
				    : '+';
	paint(style, node_colors[cell->node % NODE_COLORS], text);
}

enum row { ROW_SHARED, ROW_PRIVATE, ROW_STATE, ROW_NODES };

/* The characters that a bar of @width ones at most has */
static unsigned int bar_length(const struct scale *scale, const struct region *region, unsigned int width)
{
	unsigned int length = (unsigned int)(scaled(scale, region->size) * width + 0.5);

	return length ? length : 1;
}

/* Prints a bar, and spaces up to the end of the longest one if something follows. */
static void print_row(const struct style *style, const struct scale *scale, const struct region *region,
		      enum row row, unsigned int max_width, bool fill)
{
	unsigned int width = bar_length(scale, region, max_width);
	struct cell cell;

	paint(style, DIM, mark(style, "▕", "["));
	for (unsigned int i = 0; i < width; i++) {
		look_at_cell(region, i, width, &cell);
		if (row == ROW_STATE)
			print_state_cell(style, &cell);
		else if (row == ROW_NODES)
			print_node_cell(style, &cell);
		else
			print_side_cell(style, &cell, row == ROW_PRIVATE ? PRIVATE : SHARED);
	}
	paint(style, DIM, mark(style, "▏", "]"));
	if (fill)
		printf("%*s", (int)(max_width - width), "");
}

/* ---- a region with a picture ---- */

/* No bar is shorter, in characters. */
#define SHORTEST_BAR 4

static unsigned int bar_width(const struct style *style, unsigned int beside)
{
	unsigned int width;

	/* A power of two, so that a character stands for a round number of bytes */
	for (width = 8; width < 256 && 2 * width + beside <= style->width; width *= 2)
		;
	return width;
}

static void print_percent(uint64_t part, uint64_t whole, bool unknown)
{
	if (unknown)
		printf("   ?\n");
	else if (part && percent(part, whole) == 0)
		printf("  <1%%\n");
	else
		printf("%4u%%\n", percent(part, whole));
}

static void print_side(const struct style *style, const struct scale *scale,
		       const struct region *region, int side)
{
	const char *label = !region->has_private_side ? "memory" : side == SHARED ? "shared" : "private";
	struct totals totals;
	bool unknown = region->piece_count == 0;

	add_up(region, 1, &totals);
	for (size_t i = 0; i < region->piece_count; i++)
		unknown |= region->pieces[i].resident[side] == UNKNOWN;
	printf("%*s ", LABEL - 1, label);
	print_row(style, scale, region, side == PRIVATE ? ROW_PRIVATE : ROW_SHARED,
		  bar_width(style, LABEL + PERCENT), true);
	print_percent(totals.resident[side], region->size, unknown);
}

static void print_bars(const struct style *style, const struct scale *scale,
		       const struct region *region, bool show_nodes)
{
	unsigned int width = bar_width(style, LABEL + PERCENT);

	if (region->has_private_side) {
		printf("%*s ", LABEL - 1, "state");
		print_row(style, scale, region, ROW_STATE, width, false);
		putchar('\n');
	}
	print_side(style, scale, region, SHARED);
	if (region->has_private_side)
		print_side(style, scale, region, PRIVATE);
	if (show_nodes) {
		printf("%*s ", LABEL - 1, "node");
		print_row(style, scale, region, ROW_NODES, width, false);
		putchar('\n');
	}
}

static void print_facts(const struct region *region)
{
	if (region->has_slot)
		printf(", memslot %" PRIu64, region->slot);
	if (region->kind && strcmp(region->kind, "ram")) {
		printf(", kind ");
		print_clean(region->kind, strlen(region->kind));
	}
	if (region->readonly)
		printf(", read-only");
	if (region->dirty_log)
		printf(", dirty log");
	if (region->has_file)
		printf(", fd %" PRIu64, region->fd);
	if (region->has_file && region->file_offset)
		printf(" + 0x%" PRIx64, region->file_offset);
	if (region->has_hva)
		printf(", hva 0x%" PRIx64, region->hva);
}

static void print_region(const struct style *style, const struct scale *scale,
			 const struct region *region, bool show_nodes)
{
	char address[24], size[SIZE_TEXT];

	snprintf(address, sizeof(address), "0x%" PRIx64, region->gpa);
	paint(style, BOLD, address);
	printf("  %s, ", size_text(region->size, size));
	print_clean(region->backing, strlen(region->backing));
	print_facts(region);
	if (region->lost)
		paint(style, RED, ", MEMSLOT LOST");
	putchar('\n');
	if (!region->is_device)
		print_bars(style, scale, region, show_nodes);
}

/* ---- a region in a line ---- */

/* Columns before the bar of a line, and for its frame */
#define LINE_LABEL 52

static void print_line(const struct style *style, const struct scale *scale,
		       const struct region *region)
{
	char address[24], size[SIZE_TEXT], resident[SIZE_TEXT], slot[24] = "";
	size_t backing_size = first_columns(region->backing, 8);
	struct totals totals;

	add_up(region, 1, &totals);
	if (region->has_slot)
		snprintf(slot, sizeof(slot), "%" PRIu64, region->slot);
	snprintf(address, sizeof(address), "0x%" PRIx64, region->gpa);
	printf("%14s %9s ", address, size_text(region->size, size));
	print_clean(region->backing, backing_size);
	printf("%*s %5s", 8 - (int)columns(region->backing, backing_size), "", slot);
	if (region->is_device) {
		putchar('\n');
		return;
	}

	printf(" %9s ", totals.unknown == region->size ? "?"
		: size_text(totals.resident[SHARED] + totals.resident[PRIVATE], resident));
	print_row(style, scale, region,
		  totals.resident[PRIVATE] > totals.resident[SHARED] ? ROW_PRIVATE : ROW_SHARED,
		  bar_width(style, LINE_LABEL), region->lost);
	paint(style, RED, region->lost ? " LOST" : "");
	putchar('\n');
}

/* ---- all of it ---- */

static void print_hole(const struct style *style, const struct region *before,
		       const struct region *region)
{
	uint64_t end = before->gpa + before->size, hole = region->gpa - end;
	char size[SIZE_TEXT], text[80];

	if (!hole)
		return;
	snprintf(text, sizeof(text), "%*s %s nothing for %s\n", LABEL - 1, "",
		 mark(style, "⋮", ":"), size_text(hole, size));
	paint(style, DIM, text);
}

static void print_head(const struct style *style, const struct layout *layout)
{
	char size[SIZE_TEXT];

	if (layout->name) {
		if (style->color)
			fputs(BOLD, stdout);
		print_clean(layout->name, strlen(layout->name));
		if (style->color)
			fputs(OFF, stdout);
		putchar('\n');
	}
	print_clean(layout->architecture, strlen(layout->architecture));
	printf(", pages of %s", size_text(layout->page_size, size));
	if (layout->address_space != UNKNOWN && layout->address_space)
		printf(", address space %" PRIu64, layout->address_space);
	if (layout->address_bits != UNKNOWN)
		printf(", %" PRIu64 " bits of guest address", layout->address_bits);
	printf(", libgmem ");
	print_clean(layout->library, strlen(layout->library));
	putchar('\n');
}

static const char *plural(uint64_t count)
{
	return count == 1 ? "" : "s";
}

static void print_sums(const struct layout *layout, const struct totals *totals)
{
	char size[SIZE_TEXT];
	uint64_t resident = totals->resident[SHARED] + totals->resident[PRIVATE];
	uint64_t count = layout->region_count - totals->range_count - totals->elsewhere_count;

	printf("%s of memory in %" PRIu64 " region%s", size_text(totals->memory, size), count, plural(count));
	if (totals->elsewhere_count)
		printf(", %s of kind device or external in %" PRIu64, size_text(totals->elsewhere, size),
		       totals->elsewhere_count);
	if (totals->range_count)
		printf(", and %" PRIu64 " range%s of devices", totals->range_count,
		       plural(totals->range_count));
	putchar('\n');

	if (totals->memory && totals->unknown < totals->memory) {
		printf("%s of host memory used", size_text(resident, size));
		if (totals->resident[PRIVATE] || totals->private)
			printf(": %s shared", size_text(totals->resident[SHARED], size));
		if (totals->resident[PRIVATE] || totals->private)
			printf(", %s private", size_text(totals->resident[PRIVATE], size));
		if (totals->lowest_node != UNKNOWN && totals->lowest_node == totals->highest_node)
			printf(", on node %" PRIu64, totals->lowest_node);
		putchar('\n');
	}
	if (totals->private)
		printf("%s of it private to the guest (%u%%)\n", size_text(totals->private, size),
		       percent(totals->private, totals->memory));
}

static void print_stuck(const struct style *style, const struct layout *layout)
{
	char text[160], size[SIZE_TEXT];

	for (size_t i = 0; i < layout->stuck_count; i++) {
		snprintf(text, sizeof(text), "\nmemslot %" PRIu64 " is stuck at 0x%" PRIx64
			 ", %s: KVM refused to delete it\n", layout->stuck[i].slot, layout->stuck[i].gpa,
			 size_text(layout->stuck[i].size, size));
		paint(style, RED, text);
	}
}

static void print_leases(const struct layout *layout)
{
	char size[SIZE_TEXT];

	for (size_t i = 0; i < layout->lease_count && i < MAX_LEASES; i++) {
		printf("%s0x%" PRIx64 "  %s, in use by ", i ? "" : "\n", layout->leases[i].gpa,
		       size_text(layout->leases[i].size, size));
		print_clean(layout->leases[i].holder, strlen(layout->leases[i].holder));
		putchar('\n');
	}
	if (layout->lease_count > MAX_LEASES)
		printf("and %zu more in use\n", layout->lease_count - MAX_LEASES);
}

static void print_scale(const struct scale *scale)
{
	char shortest[SIZE_TEXT], longest[SIZE_TEXT];

	if (scale->is_log)
		printf("bars are on a logarithmic scale, from %s to %s\n", size_text(scale->shortest, shortest),
		       size_text(scale->longest, longest));
	else if (scale->shortest != scale->longest)
		printf("bars are to scale: the longest is %s\n", size_text(scale->longest, longest));
}

static void print_legend(const struct style *style, bool has_private, bool show_nodes)
{
	const char *const *shades = style->unicode ? unicode_shades : ascii_shades;

	printf("\n%s nothing there  %s %s %s some of it  %s all there  %s not known\n", shades[NOTHING],
	       shades[LITTLE], shades[HALF], shades[MUCH], shades[ALL], shades[NOT_KNOWN]);
	if (has_private)
		printf("s the guest uses shared memory  P private memory  m both\n");
	if (show_nodes)
		printf("0-9 a-z the NUMA node with most of it, where that is known\n");
}

void print_picture(const struct layout *layout, const struct style *style)
{
	bool in_lines = layout->region_count > MANY && !style->every_region, has_private = false;
	const struct region *before = NULL;
	struct totals totals;
	struct scale scale;
	bool show_nodes;

	add_up(layout->regions, layout->region_count, &totals);
	show_nodes = totals.lowest_node != totals.highest_node && !in_lines;
	make_scale(layout, false,
		   (double)SHORTEST_BAR / bar_width(style, in_lines ? LINE_LABEL : LABEL + PERCENT), &scale);

	print_head(style, layout);
	print_sums(layout, &totals);
	if (in_lines)
		printf("\n%14s %9s %-8s %5s %9s\n", "address", "size", "backing", "slot", "used");
	for (size_t i = 0; i < layout->region_count; i++) {
		const struct region *region = &layout->regions[i];

		has_private |= region->has_private_side && !in_lines;
		if (!in_lines && before)
			print_hole(style, before, region);
		else if (!in_lines)
			putchar('\n');
		if (in_lines)
			print_line(style, &scale, region);
		else
			print_region(style, &scale, region, show_nodes);
		before = region;
	}
	print_stuck(style, layout);
	print_leases(layout);
	if (totals.memory) {
		print_legend(style, has_private, show_nodes);
		print_scale(&scale);
	}
}
