/* SPDX-License-Identifier: MIT */
/*
 * gmem-probe: prints what this host, and a VM on it, support for guest memory.
 *
 * The program uses only the public API. It makes a VM to ask, because only a VM fd tells
 * what VMs of its type support.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"
#include "text.h"

enum output { OUTPUT_TABLE, OUTPUT_JSON, OUTPUT_NOTHING };

struct options {
	struct question question;
	enum output output;
	enum color color;
	const char **required;
	size_t required_count;

	/* as given, until they are checked against each other */
	bool vm_type_given;
	bool json;
	bool quiet;
};

/* ---- requirements ---- */

static bool known_names_only(const struct options *options, const struct report *report)
{
	size_t i, j;

	for (i = 0; i < options->required_count; i++) {
		const char *name = options->required[i];

		if (find_backing(report, name) || find_finding(report, name))
			continue;

		print_error("--require %s: no such name", name);
		fprintf(stderr, "Ways of backing:");
		for (j = 0; j < BACKING_COUNT; j++)
			fprintf(stderr, " %s", report->backings[j].name);
		fprintf(stderr, ". Findings:");
		for (j = 0; j < report->finding_count; j++)
			fprintf(stderr, " %s", report->findings[j].name);
		fprintf(stderr, ".\n");
		return false;
	}
	return true;
}

static bool meets_requirements(const struct options *options, const struct report *report)
{
	bool met = true;
	size_t i;

	for (i = 0; i < options->required_count; i++) {
		const struct backing *backing = find_backing(report, options->required[i]);
		const struct gmem_finding *finding = find_finding(report, options->required[i]);
		uint32_t answer = backing ? backing->answer : finding->answer;

		if (answer == GMEM_YES)
			continue;

		print_error("%s: %s: %s", options->required[i], answer_name(answer),
			    backing ? backing->reason : finding->reason);
		met = false;
	}
	return met;
}

/* ---- options ---- */

static const char help[] =
	"Usage: gmem-probe [OPTION]...\n"
	"Say what this host, and a VM on it, can do with guest memory, and why not.\n"
	"\n"
#ifdef __x86_64__
	"  --vm-type TYPE   the type of VM to ask: default, sw-protected, sev, sev-es,\n"
	"                   snp, tdx, or a number\n"
#else
	"  --vm-type TYPE   the type of VM to ask: default, pkvm, or its bits of guest\n"
	"                   address\n"
#endif
	"  --host           make no VM, ask only the host\n"
	"  --no-guest       do not run a guest to see whose memory it uses\n"
	"  --kvm PATH       the KVM device, instead of /dev/kvm\n"
	"  --require WHAT   fail unless WHAT, a way of backing or the name of a finding,\n"
	"                   is a yes; may be repeated\n"
	"  --json           print JSON, see gmem-probe(1)\n"
	"  --quiet          print no report\n"
	"  --color=WHEN     \"auto\", \"always\" or \"never\"\n"
	"  -V, --version    print the version of libgmem\n"
	"  -h, --help       print this\n"
	"\n"
	"Ways of backing: shared, private, mapped, host, in-place; see gmem(7).\n"
	"Exit status: 0 fine, 1 something required is not there, 2 wrong usage,\n"
	"3 no report could be made.\n";

enum {
	OPTION_VM_TYPE = 256,
	OPTION_HOST,
	OPTION_NO_GUEST,
	OPTION_KVM,
	OPTION_REQUIRE,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_COLOR,
	OPTION_VERSION = 'V',
	OPTION_HELP = 'h',
};

static const struct option known_options[] = {
	{ "vm-type", required_argument, NULL, OPTION_VM_TYPE },
	{ "host", no_argument, NULL, OPTION_HOST },
	{ "no-guest", no_argument, NULL, OPTION_NO_GUEST },
	{ "kvm", required_argument, NULL, OPTION_KVM },
	{ "require", required_argument, NULL, OPTION_REQUIRE },
	{ "json", no_argument, NULL, OPTION_JSON },
	{ "quiet", no_argument, NULL, OPTION_QUIET },
	{ "color", required_argument, NULL, OPTION_COLOR },
	{ "version", no_argument, NULL, OPTION_VERSION },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ NULL, 0, NULL, 0 },
};

static void take_option(int option, const char *argument, struct options *options)
{
	switch (option) {
	case OPTION_VM_TYPE:
		if (!parse_vm_type(optarg, &options->question.vm_type))
			usage_error("--vm-type %s: no such type of VM", optarg);
		options->vm_type_given = true;
		break;
	case OPTION_HOST:
		options->question.no_vm = true;
		break;
	case OPTION_NO_GUEST:
		options->question.run_guest = false;
		break;
	case OPTION_KVM:
		options->question.kvm_path = optarg;
		break;
	case OPTION_REQUIRE:
		options->required[options->required_count++] = optarg;
		break;
	case OPTION_JSON:
		options->json = true;
		break;
	case OPTION_QUIET:
		options->quiet = true;
		break;
	case OPTION_COLOR:
		if (!parse_color(optarg, &options->color))
			usage_error("--color %s: auto, always or never", optarg);
		break;
	case OPTION_VERSION:
		printf("gmem-probe %s\n", gmem_version());
		exit(EXIT_YES);
	case OPTION_HELP:
		fputs(help, stdout);
		exit(EXIT_YES);
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

	if (optind < argc)
		usage_error("%s: no arguments are taken besides options", argv[optind]);
	if (options->question.no_vm && options->vm_type_given)
		usage_error("--host makes no VM, --vm-type says which: choose one");
	if (options->json && options->quiet)
		usage_error("--json and --quiet exclude each other");
	options->output = options->json ? OUTPUT_JSON :
			  options->quiet ? OUTPUT_NOTHING : OUTPUT_TABLE;
}

/* ---- output ---- */

static void print_report(const struct options *options, const struct report *report)
{
	switch (options->output) {
	case OUTPUT_TABLE:
		print_table(report, terminal_width(), use_color(options->color));
		break;
	case OUTPUT_JSON:
		print_json(report);
		break;
	case OUTPUT_NOTHING:
		break;
	}
}

int main(int argc, char **argv)
{
	struct options options = {
		.question = { .kvm_path = DEFAULT_KVM_PATH, .run_guest = true },
	};
	struct report report = { 0 };
	int status;

	options.required = check_memory(calloc((size_t)argc, sizeof(*options.required)));
	parse_options(argc, argv, &options);

	if (make_report(&options.question, &report) < 0) {
		print_error("no report: %s", gmem_last_error());
		status = EXIT_NO_REPORT;
	} else if (!known_names_only(&options, &report)) {
		status = EXIT_USAGE;
	} else {
		print_report(&options, &report);
		status = meets_requirements(&options, &report) ? EXIT_YES : EXIT_NOT_ALL;
	}

	if (fflush(stdout) || ferror(stdout)) {
		print_error("standard output: %s", strerror(errno));
		status = EXIT_NO_REPORT;
	}
	free_report(&report);
	free(options.required);
	return status;
}
