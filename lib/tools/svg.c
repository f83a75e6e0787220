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
#define HEAD 130
#define AXIS 98
#define BAR 18
#define STRIP 7
#define GAP 34
#define HOLE_GAP 22
#define LEGEND 70

/* The width of a stretch of a bar: more of them the eye cannot tell apart */
#define CELL_WIDTH 2

/* No bar is shorter. */
#define SHORTEST_BAR 14

/* Marks of the scale, and regions in the words for who cannot see the picture, at most */
#define TICKS 6
#define MAX_WORDS 32

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

static double bar_length(const struct scale *scale, const struct region *region)
{
	double length = BAR_WIDTH * scaled(scale, region->size);

	return length < 1 ? 1 : length;
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

static void print_row(const struct region *region, enum row row, double length, unsigned int y,
		      unsigned int height)
{
	size_t start = 0, cells = (size_t)(length / CELL_WIDTH + 0.5);
	struct look last = { 0 }, now = { 0 };
	struct cell cell;
	double width;

	cells += !cells;
	width = length / (double)cells;
	for (size_t i = 0; i <= cells; i++) {
		if (i < cells) {
			look_at_cell(region, i, cells, &cell);
			now = look_of(&cell, row);
			if (i && looks_alike(&now, &last))
				continue;
		}
		if (i && last.color)
			print_rect(BAR_LEFT + width * (double)start, y, width * (double)(i - start), height,
				   last.color, last.opacity);
		start = i;
		last = now;
	}
}

static void print_frame(const struct region *region, double length, unsigned int y, unsigned int height)
{
	printf("<rect x=\"%d\" y=\"%u\" width=\"%.1f\" height=\"%u\" class=\"%s\"/>\n", BAR_LEFT, y,
	       length, height, region->lost ? "lost" : "frame");
}

static void print_bars(const struct region *region, double length, unsigned int y, bool show_nodes)
{
	if (region->is_device) {
		printf("<rect x=\"%d\" y=\"%u\" width=\"%.1f\" height=\"%d\" fill=\"url(#device)\"/>\n",
		       BAR_LEFT, y, length, BAR / 2);
		print_frame(region, length, y, BAR / 2);
		return;
	}

	print_row(region, ROW_SHARED, length, y, BAR);
	print_frame(region, length, y, BAR);
	y += BAR;
	if (region->has_private_side) {
		print_row(region, ROW_STATE, length, y + 1, STRIP);
		print_row(region, ROW_PRIVATE, length, y + STRIP + 2, BAR);
		print_frame(region, length, y + STRIP + 2, BAR);
		y += STRIP + 2 + BAR;
	}
	if (show_nodes)
		print_row(region, ROW_NODES, length, y + 1, STRIP);
}

/* ---- the scale ---- */

static void print_tick(const struct scale *scale, uint64_t size)
{
	double x = BAR_LEFT + BAR_WIDTH * (size ? scaled(scale, size) : 0);
	char text[SIZE_TEXT];

	printf("<path d=\"M%.1f %dv5\" class=\"axis\"/><text x=\"%.1f\" y=\"%d\" class=\"tick\">%s</text>\n",
	       x, AXIS - 2, x, AXIS + 15, size ? size_text(size, text) : "0");
}

/* Powers of two on a logarithmic scale, where they are at equal distances; else quarters */
static void print_ticks(const struct scale *scale)
{
	int low = 63 - __builtin_clzll(scale->shortest), high = 63 - __builtin_clzll(scale->longest), step;

	if (!scale->is_log) {
		for (uint64_t i = 0; i <= 4; i++)
			print_tick(scale, scale->longest / 4 * i + scale->longest % 4 * i / 4);
		return;
	}
	low += (scale->shortest & (scale->shortest - 1)) != 0;
	step = (high - low) / TICKS + 1;
	for (int power = low; power <= high; power += step)
		print_tick(scale, UINT64_C(1) << power);
}

static void print_axis(const struct scale *scale)
{
	if (!scale->longest)
		return;
	printf("<text x=\"%d\" y=\"%d\" class=\"address\">%s</text>\n", BAR_LEFT - 10, AXIS + 5,
	       scale->is_log ? "log scale" : "to scale");
	printf("<path d=\"M%d %dh%d\" class=\"%s\"/>\n", BAR_LEFT, AXIS, BAR_WIDTH,
	       scale->is_log ? "axis log" : "axis");
	print_ticks(scale);
}

/* ---- words ---- */

static void print_facts(const struct region *region)
{
	char size[SIZE_TEXT];

	printf("%s ", size_text(region->size, size));
	print_text(region->backing);
	if (region->has_slot)
		printf(", memslot %" PRIu64, region->slot);
	if (region->kind && strcmp(region->kind, "ram")) {
		printf(", kind ");
		print_text(region->kind);
	}
	printf("%s%s", region->readonly ? ", read-only" : "", region->dirty_log ? ", dirty log" : "");
}

static void print_region(const struct scale *scale, const struct region *region, unsigned int y,
			 bool show_nodes)
{
	struct totals totals;
	char used[SIZE_TEXT];

	add_up(region, 1, &totals);
	printf("<text x=\"%d\" y=\"%u\" class=\"address\">0x%" PRIx64 "</text>\n", BAR_LEFT - 10, y + 13,
	       region->gpa);
	printf("<text x=\"%d\" y=\"%u\" class=\"fact\">", BAR_LEFT, y - 5);
	print_facts(region);
	printf("%s</text>\n", region->lost ? ", <tspan class=\"warning\">MEMSLOT LOST</tspan>" : "");
	if (!region->is_device && totals.unknown < region->size)
		printf("<text x=\"%d\" y=\"%u\" class=\"used\">%s used</text>\n", BAR_LEFT + BAR_WIDTH, y - 5,
		       size_text(totals.resident[SHARED] + totals.resident[PRIVATE], used));
	print_bars(region, bar_length(scale, region), y, show_nodes);
}

static void print_hole(const struct layout *layout, size_t i, unsigned int y)
{
	const struct region *region = &layout->regions[i];
	char size[SIZE_TEXT];

	printf("<text x=\"%d\" y=\"%u\" class=\"hole\">nothing for %s</text>\n", BAR_LEFT, y,
	       size_text(region->gpa - (region[-1].gpa + region[-1].size), size));
}

static void print_start(unsigned int height)
{
	printf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%u\" "
	       "viewBox=\"0 0 %d %u\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\" "
	       "aria-labelledby=\"gmem-title gmem-desc\">\n", WIDTH, height, WIDTH, height);
}

static void print_style(unsigned int height)
{
	printf("<style>\n"
	       "text { fill: #333333 }\n"
	       ".title { font-size: 18px; font-weight: bold; fill: #111111 }\n"
	       ".address { font-family: monospace; text-anchor: end }\n"
	       ".used { text-anchor: end }\n"
	       ".hole { fill: #888888; font-style: italic }\n"
	       ".warning { fill: #b00000; font-weight: bold }\n"
	       ".frame { fill: none; stroke: #888888 }\n"
	       ".lost { fill: none; stroke: #b00000; stroke-width: 3 }\n"
	       ".axis { fill: none; stroke: #888888 }\n"
	       ".log { stroke-dasharray: 4 3 }\n"
	       ".tick { text-anchor: middle; font-size: 10px; fill: #666666 }\n"
	       "</style>\n"
	       "<defs>\n"
	       "<pattern id=\"device\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\">"
	       "<path d=\"M0 8L8 0\" stroke=\"#bbbbbb\"/></pattern>\n"
	       "<pattern id=\"unknown\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
	       "<circle cx=\"3\" cy=\"3\" r=\"1\" fill=\"#999999\"/></pattern>\n"
	       "</defs>\n"
	       "<rect width=\"%d\" height=\"%u\" fill=\"#ffffff\"/>\n", WIDTH, height);
}

static void print_sums(const struct totals *totals)
{
	char size[SIZE_TEXT];

	printf("%s of memory", size_text(totals->memory, size));
	if (totals->memory && totals->unknown < totals->memory)
		printf(", %s of host memory used",
		       size_text(totals->resident[SHARED] + totals->resident[PRIVATE], size));
	if (totals->private)
		printf(", %s private to the guest", size_text(totals->private, size));
}

static void print_stuck(const struct layout *layout)
{
	printf("%zu memslot%s stuck", layout->stuck_count, layout->stuck_count == 1 ? " is" : "s are");
}

/* For who cannot see the picture: screen readers read it aloud. */
static void print_words(const struct layout *layout, const struct totals *totals)
{
	char used[SIZE_TEXT];

	printf("<title id=\"gmem-title\">Guest memory");
	printf("%s", layout->name ? " of " : "");
	print_text(layout->name ? layout->name : "");
	printf("</title>\n<desc id=\"gmem-desc\">");
	print_sums(totals);
	printf(".");
	if (layout->stuck_count) {
		printf(" ");
		print_stuck(layout);
		printf(".");
	}
	for (size_t i = 0; i < layout->region_count && i < MAX_WORDS; i++) {
		const struct region *region = &layout->regions[i];
		struct totals of_region;

		add_up(region, 1, &of_region);
		printf("\nAt 0x%" PRIx64 ": ", region->gpa);
		print_facts(region);
		if (!region->is_device && of_region.unknown < region->size)
			printf(", %s used", size_text(of_region.resident[SHARED] + of_region.resident[PRIVATE],
						      used));
		printf("%s.", region->lost ? ", MEMSLOT LOST" : "");
	}
	if (layout->region_count > MAX_WORDS)
		printf("\nAnd %zu more regions.", layout->region_count - MAX_WORDS);
	printf("</desc>\n");
}

static void print_head(const struct layout *layout, const struct totals *totals)
{
	char size[SIZE_TEXT];

	printf("<text x=\"%d\" y=\"38\" class=\"title\">", MARGIN);
	print_text(layout->name ? layout->name : "Guest memory");
	printf("</text>\n<text x=\"%d\" y=\"58\">", MARGIN);
	print_sums(totals);
	printf("; ");
	print_text(layout->architecture);
	printf(", pages of %s", size_text(layout->page_size, size));
	if (layout->address_space != UNKNOWN && layout->address_space)
		printf(", address space %" PRIu64, layout->address_space);
	printf("</text>\n");
	if (layout->stuck_count) {
		printf("<text x=\"%d\" y=\"76\" class=\"warning\">", MARGIN);
		print_stuck(layout);
		printf("</text>\n");
	}
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
	struct scale scale;
	unsigned int y = HEAD;

	add_up(layout->regions, layout->region_count, &totals);
	make_scale(layout, true, (double)SHORTEST_BAR / BAR_WIDTH, &scale);
	show_nodes = totals.lowest_node != totals.highest_node;
	print_start(height_of(layout, show_nodes));
	print_words(layout, &totals);
	print_style(height_of(layout, show_nodes));
	print_head(layout, &totals);
	print_axis(&scale);
	for (size_t i = 0; i < layout->region_count; i++) {
		if (has_hole(layout, i)) {
			print_hole(layout, i, y);
			y += HOLE_GAP;
		}
		has_private |= layout->regions[i].has_private_side;
		print_region(&scale, &layout->regions[i], y + 10, show_nodes);
		y += row_height(&layout->regions[i], show_nodes) + GAP;
	}
	print_legend(&totals, has_private, show_nodes, y + 10);
	printf("</svg>\n");
}
