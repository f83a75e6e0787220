/* SPDX-License-Identifier: MIT */
/* Draws a layout as SVG. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "layout.h"
#include "text.h"

/* In pixels */
#define WIDTH 960
#define MARGIN 24
#define BAR_LEFT 150
#define BAR_WIDTH 700
#define HEAD 92
#define BAR 18
#define STRIP 7
#define GAP 34
#define HOLE_GAP 22
#define LEGEND 70

/* The stretches of a bar, about as many as the eye can tell apart */
#define CELLS 350

static const char *const node_colors[] = { "#0072b2", "#e69f00", "#56b4e9", "#d55e00",
					   "#f0e442", "#999999" };
#define NODE_COLORS (sizeof(node_colors) / sizeof(node_colors[0]))

/* Colours for colour-blind readers, too; in print they differ in lightness. */
static const char *const side_colors[SIDES] = { "#009e73", "#aa4499" };

/* XML cannot express most control characters, and is read on terminals, too. */
static void print_text(const char *s)
{
	size_t size;

	for (; *s; s += size) {
		size = strcspn(s, "&<>");
		print_clean(s, size);
		if (s[size])
			fputs(s[size] == '&' ? "&amp;" : s[size] == '<' ? "&lt;" : "&gt;", stdout);
		size += s[size] != '\0';
	}
}

static unsigned int row_height(const struct region *region, bool show_nodes)
{
	if (region->is_device)
		return BAR / 2;
	return (region->has_private_side ? 2u * BAR + 2 + STRIP : BAR) + (show_nodes ? STRIP + 1u : 0);
}

static bool has_hole(const struct layout *layout, size_t i)
{
	const struct region *region = &layout->regions[i];

	return i && region[-1].gpa + region[-1].size != region->gpa;
}

static unsigned int height_of(const struct layout *layout, bool show_nodes)
{
	unsigned int height = HEAD + LEGEND;

	for (size_t i = 0; i < layout->region_count; i++)
		height += row_height(&layout->regions[i], show_nodes) + GAP +
			  (has_hole(layout, i) ? HOLE_GAP : 0);
	return height;
}

/* ---- bars ---- */

static double cell_x(size_t index)
{
	return BAR_LEFT + (double)BAR_WIDTH / CELLS * (double)index;
}

static void print_rect(double x, unsigned int y, double width, unsigned int height,
		       const char *color, double opacity)
{
	printf("<rect x=\"%.1f\" y=\"%u\" width=\"%.1f\" height=\"%u\" fill=\"%s\"", x, y, width,
	       height, color);
	if (opacity < 1)
		printf(" fill-opacity=\"%.2f\"", opacity);
	printf("/>\n");
}

/* The look of a stretch; neighbours that look the same are drawn as one. */
struct look {
	const char *color;		/* NULL: nothing is drawn */
	double opacity;
};

enum row { ROW_SHARED, ROW_PRIVATE, ROW_STATE, ROW_NODES };

static struct look look_of(const struct cell *cell, enum row row)
{
	int side = row == ROW_PRIVATE ? PRIVATE : SHARED;
	double part;

	if (row == ROW_NODES)
		return (struct look){ cell->node == UNKNOWN ? NULL : node_colors[cell->node % NODE_COLORS], 1 };
	if (row == ROW_STATE && !cell->state_known)
		return (struct look){ "#cccccc", 1 };
	if (row == ROW_STATE)
		return (struct look){ side_colors[cell->private * 2 > cell->size], 0.9 };
	if (!cell->known[side])
		return (struct look){ "url(#unknown)", 1 };

	part = cell->resident[side] / cell->size;
	if (part <= 0)
		return (struct look){ NULL, 1 };
	/* A little must be visible, too; in steps, so that neighbours can look the same. */
	return (struct look){ side_colors[side], part >= 1 ? 1 : 0.3 + 0.1 * (int)(part * 6) };
}

static bool looks_alike(const struct look *a, const struct look *b)
{
	return a->color == b->color && a->opacity == b->opacity;
}

static void print_row(const struct region *region, enum row row, unsigned int y,
		      unsigned int height)
{
	struct look last = { 0 }, now = { 0 };
	struct cell cell;
	size_t start = 0;

	for (size_t i = 0; i <= CELLS; i++) {
		if (i < CELLS) {
			look_at_cell(region, i, CELLS, &cell);
			now = look_of(&cell, row);
			if (i && looks_alike(&now, &last))
				continue;
		}
		if (i && last.color)
			print_rect(cell_x(start), y, cell_x(i) - cell_x(start), height, last.color,
				   last.opacity);
		start = i;
		last = now;
	}
}

static void print_frame(unsigned int y, unsigned int height)
{
	printf("<rect x=\"%d\" y=\"%u\" width=\"%d\" height=\"%u\" class=\"frame\"/>\n", BAR_LEFT, y,
	       BAR_WIDTH, height);
}

static void print_bars(const struct region *region, unsigned int y, bool show_nodes)
{
	if (region->is_device) {
		printf("<rect x=\"%d\" y=\"%u\" width=\"%d\" height=\"%d\" fill=\"url(#device)\"/>\n",
		       BAR_LEFT, y, BAR_WIDTH, BAR / 2);
		print_frame(y, BAR / 2);
		return;
	}

	print_row(region, ROW_SHARED, y, BAR);
	print_frame(y, BAR);
	y += BAR;
	if (region->has_private_side) {
		print_row(region, ROW_STATE, y + 1, STRIP);
		print_row(region, ROW_PRIVATE, y + STRIP + 2, BAR);
		print_frame(y + STRIP + 2, BAR);
		y += STRIP + 2 + BAR;
	}
	if (show_nodes)
		print_row(region, ROW_NODES, y + 1, STRIP);
}

/* ---- words ---- */

static void print_region(const struct region *region, unsigned int y, bool show_nodes)
{
	char size[SIZE_TEXT], used[SIZE_TEXT];
	struct totals totals;

	add_up(region, 1, &totals);
	printf("<text x=\"%d\" y=\"%u\" class=\"address\">0x%" PRIx64 "</text>\n", BAR_LEFT - 10, y + 13,
	       region->gpa);
	printf("<text x=\"%d\" y=\"%u\" class=\"fact\">%s ", BAR_LEFT, y - 5,
	       size_text(region->size, size));
	print_text(region->backing);
	if (region->has_slot)
		printf(", memslot %" PRIu64, region->slot);
	if (region->kind && strcmp(region->kind, "ram")) {
		printf(", kind ");
		print_text(region->kind);
	}
	printf("%s%s%s", region->readonly ? ", read-only" : "", region->dirty_log ? ", dirty log" : "",
	       region->lost ? ", MEMSLOT LOST" : "");
	printf("</text>\n");
	if (!region->is_device && totals.unknown < region->size)
		printf("<text x=\"%d\" y=\"%u\" class=\"used\">%s used</text>\n", BAR_LEFT + BAR_WIDTH, y - 5,
		       size_text(totals.resident[SHARED] + totals.resident[PRIVATE], used));
	print_bars(region, y, show_nodes);
}

static void print_hole(const struct layout *layout, size_t i, unsigned int y)
{
	const struct region *region = &layout->regions[i];
	char size[SIZE_TEXT];

	printf("<text x=\"%d\" y=\"%u\" class=\"hole\">nothing for %s</text>\n", BAR_LEFT, y,
	       size_text(region->gpa - (region[-1].gpa + region[-1].size), size));
}

static void print_style(unsigned int height)
{
	printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%u\" "
	       "viewBox=\"0 0 %d %u\" font-family=\"sans-serif\" font-size=\"12\">\n", WIDTH, height,
	       WIDTH, height);
	printf("<style>\n"
	       "text { fill: #333333 }\n"
	       ".title { font-size: 18px; font-weight: bold; fill: #111111 }\n"
	       ".address { font-family: monospace; text-anchor: end }\n"
	       ".used { text-anchor: end }\n"
	       ".hole { fill: #888888; font-style: italic }\n"
	       ".warning { fill: #b00000; font-weight: bold }\n"
	       ".frame { fill: none; stroke: #888888 }\n"
	       "</style>\n"
	       "<defs>\n"
	       "<pattern id=\"device\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\">"
	       "<path d=\"M0 8L8 0\" stroke=\"#bbbbbb\"/></pattern>\n"
	       "<pattern id=\"unknown\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
	       "<circle cx=\"3\" cy=\"3\" r=\"1\" fill=\"#999999\"/></pattern>\n"
	       "</defs>\n"
	       "<rect width=\"%d\" height=\"%u\" fill=\"#ffffff\"/>\n", WIDTH, height);
}

static void print_head(const struct layout *layout, const struct totals *totals)
{
	char size[SIZE_TEXT];

	printf("<text x=\"%d\" y=\"38\" class=\"title\">", MARGIN);
	print_text(layout->name ? layout->name : "Guest memory");
	printf("</text>\n<text x=\"%d\" y=\"58\">%s of memory", MARGIN, size_text(totals->memory, size));
	if (totals->memory && totals->unknown < totals->memory)
		printf(", %s of host memory used",
		       size_text(totals->resident[SHARED] + totals->resident[PRIVATE], size));
	if (totals->private)
		printf(", %s private to the guest", size_text(totals->private, size));
	printf("; ");
	print_text(layout->architecture);
	printf(", pages of %s", size_text(layout->page_size, size));
	if (layout->address_space != UNKNOWN && layout->address_space)
		printf(", address space %" PRIu64, layout->address_space);
	printf("</text>\n");
	if (layout->stuck_count)
		printf("<text x=\"%d\" y=\"76\" class=\"warning\">%zu memslots are stuck</text>\n", MARGIN,
		       layout->stuck_count);
}

static int print_key(int x, unsigned int y, const char *color, const char *text, int room)
{
	print_rect(x, y - 10, 12, 12, color, 1);
	printf("<rect x=\"%d\" y=\"%u\" width=\"12\" height=\"12\" class=\"frame\"/>"
	       "<text x=\"%d\" y=\"%u\">%s</text>\n", x, y - 10, x + 18, y, text);
	return x + room;
}

static void print_legend(const struct totals *totals, bool has_private, bool show_nodes,
			 unsigned int y)
{
	char text[40];
	int x = BAR_LEFT;

	x = print_key(x, y, side_colors[SHARED], has_private ? "shared, used" : "used", 110);
	if (has_private)
		x = print_key(x, y, side_colors[PRIVATE], "private, used", 120);
	x = print_key(x, y, "none", "not used", 95);
	x = print_key(x, y, "url(#unknown)", "not known", 105);
	print_key(x, y, "url(#device)", "a device's", 100);
	if (has_private)
		printf("<text x=\"%d\" y=\"%u\">Between shared and private: which of the two the guest uses</text>\n",
		       BAR_LEFT, y + 20);

	x = BAR_LEFT;
	for (uint64_t node = totals->lowest_node; show_nodes && node <= totals->highest_node && x < WIDTH - 90;
	     node++) {
		snprintf(text, sizeof(text), "node %" PRIu64, node);
		x = print_key(x, y + 40, node_colors[node % NODE_COLORS], text, 80);
	}
}

void print_svg(const struct layout *layout)
{
	bool show_nodes, has_private = false;
	struct totals totals;
	unsigned int y = HEAD;

	add_up(layout->regions, layout->region_count, &totals);
	show_nodes = totals.lowest_node != totals.highest_node;
	print_style(height_of(layout, show_nodes));
	print_head(layout, &totals);
	for (size_t i = 0; i < layout->region_count; i++) {
		if (has_hole(layout, i)) {
			print_hole(layout, i, y);
			y += HOLE_GAP;
		}
		has_private |= layout->regions[i].has_private_side;
		print_region(&layout->regions[i], y + 10, show_nodes);
		y += row_height(&layout->regions[i], show_nodes) + GAP;
	}
	print_legend(&totals, has_private, show_nodes, y + 10);
	printf("</svg>\n");
}
