/* SPDX-License-Identifier: MIT */
/* Makes the report from the capability report of the library and five plans. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/vm_type.h"
#include "probe.h"
#include "text.h"

#ifdef __aarch64__
#define IS_ARM64 true
#else
#define IS_ARM64 false
#endif

/* Most wanted first; the table and the JSON use this order. */
static const uint32_t backing_order[BACKING_COUNT] = {
	GMEM_BACKING_SHARED,
	GMEM_BACKING_PRIVATE,
	GMEM_BACKING_MAPPED,
	GMEM_BACKING_HOST,
	GMEM_BACKING_INPLACE,
};

__attribute__((format(printf, 1, 2)))
static char *sentence(const char *format, ...)
{
	char *text = NULL;
	va_list args;

	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		text = NULL;
	va_end(args);
	return check_memory(text);
}

/* Returns a VM fd, or -1 with errno. */
static int create_vm_of_type(int kvm_fd, uint64_t type)
{
	int vm_fd;

	/* KVM_CREATE_VM returns EINTR at times, even without a signal. */
	do
		vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, (unsigned long)type);
	while (vm_fd < 0 && errno == EINTR);
	return vm_fd;
}

/* Returns a VM fd, or -errno. If @type is changed, it is the type of the VM. */
static int create_vm(int kvm_fd, uint64_t *type)
{
	int vm_fd = create_vm_of_type(kvm_fd, *type);

#ifdef __aarch64__
	/* Type 0 means 40 bits of guest address, which not every machine has. */
	if (vm_fd < 0 && *type == 0) {
		int bits = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE);

		if (bits > 0) {
			*type = (uint64_t)bits;
			vm_fd = create_vm_of_type(kvm_fd, *type);
		}
	}
#endif
	return vm_fd < 0 ? -errno : vm_fd;
}

char *vm_type_text(uint64_t type)
{
	const char *name = gmem_vm_type_name(type, IS_ARM64);

	return name ? sentence("%s", name) : sentence("%" PRIu64, type);
}

bool parse_vm_type(const char *text, uint64_t *ret)
{
	unsigned long long type;
	char *end;

	if (gmem_vm_type_find(text, IS_ARM64, ret))
		return true;
	errno = 0;
	type = strtoull(text, &end, 0);
	if (*text < '0' || *text > '9' || *end || errno)
		return false;
	*ret = type;
	return true;
}

/* Says why there is no VM. KVM answers EINVAL for a type that it does not have. */
static char *no_vm_text(const struct report *report, int err)
{
	const struct gmem_finding *types = &report->findings[GMEM_CAP_VM_TYPES];
	char *type = vm_type_text(report->vm_type);
	char *text;

	if (err == -EBUSY)
		text = sentence("No VM can be made: another hypervisor has the processor, such as "
				"VirtualBox or VMware; stop its VMs");
	else if (err == -EACCES || err == -EPERM)
		text = sentence("No VM can be made: a security policy forbids it (%s): SELinux, "
				"AppArmor or a seccomp filter", strerror(-err));
	else if (err == -EINVAL && types->answer == GMEM_YES)
		text = sentence("No VM of type %s can be made here: KVM makes only these types: %s", type,
				types->reason);
	else
		text = sentence("No VM of type %s can be made: %s", type, strerror(-err));
	free(type);
	return text;
}

static char *plan_text(const struct backing *backing, uint32_t number)
{
	const uint64_t shared_flags = GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED;

	if (number == GMEM_BACKING_HOST)
		return sentence("no guest_memfd, an ordinary memslot");

	return sentence("create flags 0x%" PRIx64 "%s, %s%s", backing->create_flags,
			backing->create_flags == shared_flags ? " (MMAP|INIT_SHARED)" : "",
			backing->needs_region2 ? "bound with KVM_SET_USER_MEMORY_REGION2" :
						 "its mapping in an ordinary memslot",
			backing->attributes == GMEM_ATTRIBUTES_VM ?
				", converted by attributes of the VM" :
			backing->attributes == GMEM_ATTRIBUTES_FILE ?
				", converted by attributes of the file" : "");
}

/*
 * Returns why a plan is not possible. If a plan for another backing is, its reason is the
 * shorter one; gmem_last_error() also says which backing is nearest.
 */
static char *why_not(const struct report *report, uint32_t number)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_SHARED, GMEM_BACKING_HOST });
	char *reason = sentence("%s", gmem_last_error());
	struct gmem_plan *plan;

	if (gmem_plan_new(report->caps, &request, &plan) < 0)
		return reason;

	if (gmem_plan_passed_over(plan, number)) {
		free(reason);
		reason = sentence("%s", gmem_plan_passed_over(plan, number));
	}
	gmem_plan_free(plan);
	return reason;
}

static void answer_backing(const struct report *report, uint32_t number, struct backing *ret)
{
	GMEM_OPTS(gmem_request, request, .backings = { number });
	struct gmem_plan *plan;

	if (gmem_plan_new(report->caps, &request, &plan) < 0) {
		ret->answer = GMEM_NO;
		ret->reason = why_not(report, number);
		return;
	}

	ret->answer = GMEM_YES;
	ret->create_flags = gmem_plan_create_flags(plan);
	ret->needs_region2 = gmem_plan_needs_region2(plan);
	ret->attributes = gmem_plan_attributes(plan);
	ret->reason = plan_text(ret, number);
	gmem_plan_free(plan);
}

/* Without a VM there are no plans, only an answer for all backings. */
static void answer_without_vm(const struct report *report, struct backing *ret)
{
	const struct gmem_finding *kvm = &report->findings[GMEM_CAP_KVM];

	if (kvm->answer == GMEM_NO) {
		ret->answer = GMEM_NO;
		ret->reason = sentence("no KVM: %s", kvm->reason);
	} else {
		ret->answer = GMEM_UNKNOWN;
		ret->reason = sentence("only a VM can tell");
	}
}

static void answer_backings(struct report *report)
{
	size_t i;

	for (i = 0; i < BACKING_COUNT; i++) {
		struct backing *backing = &report->backings[i];

		backing->name = gmem_backing_name(backing_order[i]);
		if (report->has_vm)
			answer_backing(report, backing_order[i], backing);
		else
			answer_without_vm(report, backing);
	}
}

static void read_findings(struct report *report)
{
	struct gmem_finding finding;
	uint32_t i;

	while (gmem_caps_get(report->caps, (uint32_t)report->finding_count, &finding) == 0)
		report->finding_count++;

	report->findings = check_memory(calloc(report->finding_count, sizeof(finding)));
	for (i = 0; i < report->finding_count; i++)
		gmem_caps_get(report->caps, i, &report->findings[i]);
}

/*
 * Replaces the sentences of the library about KVM, which speak of /dev/kvm, with ones
 * about the device at @path.
 */
static void explain_kvm(struct report *report, const char *path, int err)
{
	struct gmem_finding *kvm = &report->findings[GMEM_CAP_KVM];
	const char *about_default = kvm->remedy ? kvm->remedy : "";
	const char *remedy = err == -EACCES || err == -EPERM ?
		"run as a user with permission to read and write it" :
		"name the KVM device, usually " DEFAULT_KVM_PATH;
	size_t i;

	if (err == -ENOTTY)
		report->kvm_reason = sentence("%s is not KVM", path);
	else
		report->kvm_reason = sentence("%s cannot be opened: %s", path, strerror(-err));
	kvm->reason = report->kvm_reason;

	for (i = 0; i < report->finding_count; i++)
		if (report->findings[i].remedy &&
		    !strcmp(report->findings[i].remedy, about_default))
			report->findings[i].remedy = remedy;
}

/* Finds the line of /etc/group of this name, or of this number; false: there is none. */
static bool find_group(const char *name, gid_t gid, char ret_name[33])
{
	char line[512], found[33];
	unsigned int number;
	bool is_it = false;
	FILE *groups = fopen("/etc/group", "re");

	while (groups && !is_it && fgets(line, sizeof(line), groups)) {
		is_it = sscanf(line, "%32[^:]:%*[^:]:%u:", found, &number) == 2 &&
			(name ? !strcmp(found, name) : number == gid);
		if (is_it)
			strcpy(ret_name, found);
	}
	if (groups)
		fclose(groups);
	return is_it;
}

/* Which group to join for KVM: the device's, or the one that udev would have given it. */
static void find_way_in(struct report *report)
{
	const mode_t both = S_IRGRP | S_IWGRP;
	struct stat device;

	if (stat(DEFAULT_KVM_PATH, &device) == 0 && (device.st_mode & both) == both && device.st_gid &&
	    find_group(NULL, device.st_gid, report->group))
		return;
	report->gives_group = true;
	report->makes_group = !find_group("kvm", 0, report->group);
	strcpy(report->group, "kvm");
}

static int ask(const struct question *question, int kvm_fd, int vm_fd, struct report *report)
{
	GMEM_OPTS(gmem_caps_opts, opts, .kvm_fd = kvm_fd);
	bool own_device = strcmp(question->kvm_path, DEFAULT_KVM_PATH) != 0;
	int err;

	if (kvm_fd >= 0 || own_device)
		opts.flags |= GMEM_CAPS_KVM_FD;
	if (report->has_vm) {
		opts.flags |= GMEM_CAPS_VM_TYPE;
		opts.vm_type = report->vm_type;
		if (question->run_guest)
			opts.flags |= GMEM_CAPS_RUN_GUEST;
		report->ran_guest = question->run_guest;
	}
	report->needs_group = kvm_fd == -EACCES && !own_device && geteuid() != 0 &&
			      access(DEFAULT_KVM_PATH, R_OK | W_OK) < 0;
	if (report->needs_group)
		find_way_in(report);

	err = gmem_caps_new(vm_fd, &opts, &report->caps);
	if (err)
		return err;

	read_findings(report);
	if (kvm_fd < 0 && own_device)
		explain_kvm(report, question->kvm_path, kvm_fd);
	answer_backings(report);
	return 0;
}

/* Returns an fd, or -errno: -ENOTTY if the file can be opened but is not KVM. */
static int open_kvm(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -errno;

	if (ioctl(fd, KVM_GET_API_VERSION, 0) < 0) {
		close(fd);
		return -ENOTTY;
	}
	return fd;
}

int make_report(const struct question *question, struct report *report)
{
	int vm_fd = GMEM_NO_VM, vm_err = 0;
	int kvm_fd, err;

	kvm_fd = open_kvm(question->kvm_path);
	if (kvm_fd >= 0 && !question->no_vm) {
		report->vm_type = question->vm_type;
		vm_err = create_vm(kvm_fd, &report->vm_type);
		if (vm_err >= 0)
			vm_fd = vm_err;
	}
	report->has_vm = vm_fd >= 0;

	err = ask(question, kvm_fd, vm_fd, report);
	if (!err && vm_err < 0)
		report->note = no_vm_text(report, vm_err);

	if (vm_fd >= 0)
		close(vm_fd);
	if (kvm_fd >= 0)
		close(kvm_fd);
	return err;
}

void free_report(struct report *report)
{
	size_t i;

	for (i = 0; i < BACKING_COUNT; i++)
		free(report->backings[i].reason);
	free(report->note);
	free(report->kvm_reason);
	free(report->findings);
	gmem_caps_free(report->caps);
}

const struct backing *find_backing(const struct report *report, const char *name)
{
	size_t i;

	for (i = 0; i < BACKING_COUNT; i++)
		if (!strcmp(report->backings[i].name, name))
			return &report->backings[i];
	return NULL;
}

const struct gmem_finding *find_finding(const struct report *report, const char *name)
{
	size_t i;

	for (i = 0; i < report->finding_count; i++)
		if (!strcmp(report->findings[i].name, name))
			return &report->findings[i];
	return NULL;
}
