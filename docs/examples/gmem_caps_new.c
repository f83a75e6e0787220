/* SPDX-License-Identifier: MIT */
#include "examples.h"

EXAMPLE(gmem_caps_new)
{
	/* EXAMPLE: Print what a VM lacks, and what would change that. */
	struct gmem_caps *caps;
	struct gmem_finding finding;

	if (gmem_caps_new(vm_fd, NULL, &caps) < 0)
		errx(1, "%s", gmem_last_error());
	for (uint32_t line = 0; gmem_caps_get(caps, line, &finding) == 0; line++)
		if (finding.answer == GMEM_NO)
			printf("no %s: %s; %s\n", finding.name, finding.reason, finding.remedy);
	/* END */
	check(gmem_caps_get(caps, GMEM_CAP_KVM, &finding) == 0 && finding.answer == GMEM_YES);
	check(strcmp(finding.name, "kvm") == 0);
	gmem_caps_free(caps);
}
