/* SPDX-License-Identifier: MIT */
/*
 * Another part of the program may install a handler over ours, and pass on to ours the
 * signals that it does not know. Then removing ours would remove theirs, too; and
 * installing ours again, over theirs, would make the two pass a signal to each other for
 * ever. Therefore there are several handlers, called layers, which differ only in the
 * handler below, to which they pass a signal on. The handler below a layer never changes
 * once the layer was installed, so it was always installed before the layer. Thus there
 * are no circles, and the handlers need neither lock nor free anything.
 *
 * Each of the two signals has layers of its own, because others install and remove their
 * handlers for one signal at a time.
 */
#include "nofault/fault_handler.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <ucontext.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/macros.h"
#include "nofault/nofault.h"
#include "os/sys.h"

/* ---- the recovery table ---- */

/* The linker defines these around the section; weak, because a program may have no entry. */
extern const struct gmem_recovery_entry __start_gmem_recovery[]
	__attribute__((weak, visibility("hidden")));
extern const struct gmem_recovery_entry __stop_gmem_recovery[]
	__attribute__((weak, visibility("hidden")));

static uintptr_t absolute(const int32_t *relative)
{
	return (uintptr_t)relative + (uintptr_t)(intptr_t)*relative;
}

/*
 * The entries are in no useful order, but a search of 100 ns does not matter: the fault
 * itself takes microseconds.
 */
static bool find_fixup(uintptr_t pc, uintptr_t *ret)
{
	const struct gmem_recovery_entry *entry;

	for (entry = __start_gmem_recovery; entry < __stop_gmem_recovery; entry++) {
		if (absolute(&entry->insn) == pc) {
			*ret = absolute(&entry->fixup);
			return true;
		}
	}
	return false;
}

/* Linux 5.10 on arm64; older C libraries do not define it. */
#define TAG_MISMATCH_BEFORE 8	/* SEGV_MTEAERR */

/*
 * Returns whether the kernel forced the signal on the interrupted code. Otherwise it met
 * that code by chance, and is for the handler below: a process sent it, or the kernel
 * announces what happened elsewhere or earlier.
 */
static bool is_forced(const siginfo_t *info)
{
	int news = info->si_signo == SIGBUS ? BUS_MCEERR_AO : TAG_MISMATCH_BEFORE;

	return info->si_code > 0 && info->si_code != news;
}

/*
 * Returns whether the interrupted instruction caused the signal. The kernel has no address
 * to tell (SI_KERNEL) where x86 refuses one that no page can have. It also has none when
 * it finds no room on the stack for another signal's handler, which is no fault of the
 * instruction; then the number of the trap is that of an earlier fault.
 */
static bool is_fault(const siginfo_t *info, const ucontext_t *context)
{
#if defined(__x86_64__)
	enum { STACK_SEGMENT = 12, GENERAL_PROTECTION = 13 };
	greg_t trap = context->uc_mcontext.gregs[REG_TRAPNO];

	if (info->si_code == SI_KERNEL && trap != STACK_SEGMENT && trap != GENERAL_PROTECTION)
		return false;
#else
	(void)context;
	if (info->si_code == SI_KERNEL)
		return false;
#endif
	return is_forced(info);
}

static bool recover(const siginfo_t *info, ucontext_t *context)
{
	bool is_poisoned = info->si_signo == SIGBUS && info->si_code == BUS_MCEERR_AR;
	uint64_t err = is_poisoned ? EHWPOISON : EFAULT;
	uint64_t fault = gmem_nofault_page((uintptr_t)info->si_addr) | err;
	uintptr_t fixup;

#if defined(__x86_64__)
	greg_t *regs = context->uc_mcontext.gregs;

	if (!find_fixup((uintptr_t)regs[REG_RIP], &fixup))
		return false;
	regs[REG_R11] = (greg_t)fault;
	regs[REG_RIP] = (greg_t)fixup;
#elif defined(__aarch64__)
	mcontext_t *machine = &context->uc_mcontext;

	if (!find_fixup((uintptr_t)machine->pc, &fixup))
		return false;
	machine->regs[9] = fault;
	machine->pc = fixup;
#endif
	return true;
}

/* ---- layers: passing a signal on ---- */

/* A struct sigaction less the 120 bytes of its mask that the kernel does not have */
struct action {
	void (*handler)(int);	/* of either style */
	uint64_t mask;
	int flags;
};

struct layer {
	struct action below;	/* written once, before @used */
	atomic_bool used;
	atomic_bool spent;	/* @below was for one signal (SA_RESETHAND), or gave up */
};

/* Most programs need one, few need two. */
#define LAYERS 4

struct chain {
	int signal;
	const char *name;
	struct layer layers[LAYERS];
};

static struct chain chains[] = {
	{ .signal = SIGBUS, .name = "SIGBUS" },
	{ .signal = SIGSEGV, .name = "SIGSEGV" },
};

static struct chain *chain_of(int signal)
{
	return &chains[signal == SIGSEGV];
}

static atomic_uint users;

static struct action shorten(const struct sigaction *full)
{
	struct action action = { .handler = full->sa_handler, .flags = full->sa_flags };

	memcpy(&action.mask, &full->sa_mask, sizeof(action.mask));
	return action;
}

static struct sigaction lengthen(const struct action *action)
{
	struct sigaction full = { .sa_flags = action->flags };

	full.sa_handler = action->handler;
	memcpy(&full.sa_mask, &action->mask, sizeof(action->mask));
	return full;
}

static struct sigaction action_of(const struct chain *chain, const struct layer *layer);

/*
 * Does what the kernel does for SIG_DFL: it kills the program, with a core dump that shows
 * the faulting instruction. The signal is queued again and blocked until this handler
 * returns. So it is delivered before the instruction runs again, and perhaps succeeds.
 *
 * A seccomp filter may refuse that. Then a fault comes again with the instruction, nearly
 * always, and the kernel calls no handler for a fault whose signal is blocked: it kills. A
 * signal that was sent does not come again.
 */
static void die(int signal, siginfo_t *info, ucontext_t *context)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	bool handled;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	gmem_sys_sigmask(SIG_BLOCK, &set, NULL);
	sigdelset(&context->uc_sigmask, signal);
	handled = gmem_sys_sigaction(signal, &standard, NULL) != 0;
	if (!handled && gmem_sys_requeue_signal(signal, info) == 0)
		return;

	if (is_fault(info, context))
		sigaddset(&context->uc_sigmask, signal);
	else
		gmem_sys_raise(handled ? SIGKILL : signal);
}

/*
 * A handler may give up by installing the default and returning: then the instruction runs
 * again and kills, as Rust's runtime has it. The default then belongs below our handler and
 * not in its place, because the program may live on: a signal that was sent does not come
 * again, and an instruction may succeed.
 */
static void stay_installed(const struct chain *chain, struct layer *layer)
{
	struct sigaction now = { .sa_flags = 0 }, ours;

	if (!atomic_load(&users) || gmem_sys_sigaction(chain->signal, NULL, &now) ||
	    (now.sa_flags & SA_SIGINFO) || now.sa_handler != SIG_DFL)
		return;
	atomic_store(&layer->spent, true);
	ours = action_of(chain, layer);
	gmem_sys_sigaction(chain->signal, &ours, NULL);
}

/*
 * Calls the handler below nearly as the kernel would. Its signal mask is in force while it
 * runs, except that both signals stay unblocked even without SA_NODEFER: that handler, too,
 * may access memory that is not there.
 */
static void call_below(const struct sigaction *below, int signal, siginfo_t *info,
		       ucontext_t *context)
{
	sigset_t mask = below->sa_mask, old;

	for (size_t i = 0; i < GMEM_ARRAY_SIZE(chains); i++)
		sigdelset(&mask, chains[i].signal);
	gmem_sys_sigmask(SIG_BLOCK, &mask, &old);
	if (below->sa_flags & SA_SIGINFO)
		below->sa_sigaction(signal, info, context);
	else
		below->sa_handler(signal);
	gmem_sys_sigmask(SIG_SETMASK, &old, NULL);
}

static void pass_on(const struct chain *chain, struct layer *layer, siginfo_t *info,
		    ucontext_t *context)
{
	const struct sigaction below = lengthen(&layer->below);
	bool none = below.sa_handler == SIG_DFL || atomic_load(&layer->spent);

	if (!none && (below.sa_flags & (int)SA_RESETHAND))
		none = atomic_exchange(&layer->spent, true);
	/* An ignored fault would come again at once, for ever. */
	if (none || (below.sa_handler == SIG_IGN && is_forced(info))) {
		die(chain->signal, info, context);
	} else if (below.sa_handler != SIG_IGN) {
		call_below(&below, chain->signal, info, context);
		stay_installed(chain, layer);
	}
}

static void handle(unsigned int number, int signal, siginfo_t *info, void *context)
{
	struct chain *chain = chain_of(signal);
	struct layer *layer = &chain->layers[number];
	int saved_errno = errno;

	if (!is_fault(info, context) || !recover(info, context)) {
		/* Pairs with the release in take_layer(). */
		if (atomic_load_explicit(&layer->used, memory_order_acquire))
			pass_on(chain, layer, info, context);
	}
	errno = saved_errno;
}

#define HANDLER(n)                                                        \
	static void handler_##n(int signal, siginfo_t *info, void *context) \
	{                                                                 \
		handle(n, signal, info, context);                         \
	}

HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)

static void (*const handlers[LAYERS])(int, siginfo_t *, void *) = {
	handler_0, handler_1, handler_2, handler_3,
};

/* If the signal interrupted no system call without the layer, it must not with it. */
static struct sigaction action_of(const struct chain *chain, const struct layer *layer)
{
	const struct action *below = &layer->below;
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK };

	action.sa_sigaction = handlers[layer - chain->layers];
	if ((below->flags & SA_RESTART) || below->handler == SIG_IGN)
		action.sa_flags |= SA_RESTART;
	return action;
}

/* Returns the layer whose handler @action is, or NULL. */
static struct layer *layer_of(struct chain *chain, const struct sigaction *action)
{
	unsigned int i;

	for (i = 0; i < LAYERS; i++) {
		if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == handlers[i])
			return &chain->layers[i];
	}
	return NULL;
}

static bool is_same(const struct action *a, const struct action *b)
{
	return a->handler == b->handler && a->mask == b->mask && a->flags == b->flags;
}

/* Returns a layer that passes on to @below, or NULL if all pass on to something else. */
static struct layer *take_layer(struct chain *chain, const struct action *below)
{
	struct layer *layer;

	for (layer = chain->layers; layer < chain->layers + LAYERS; layer++) {
		if (!atomic_load_explicit(&layer->used, memory_order_relaxed)) {
			layer->below = *below;
			/* Pairs with the acquire in handle(). */
			atomic_store_explicit(&layer->used, true, memory_order_release);
			return layer;
		}
		if (is_same(&layer->below, below)) {
			atomic_store(&layer->spent, false);
			return layer;
		}
	}
	return NULL;
}

/* ---- enable, disable ---- */

static struct gmem_lock lock = GMEM_LOCK_INIT(GMEM_RANK_HANDLER);
/* Each time that recovery is enabled has a number, of all of its users; 0: it is not enabled. */
static atomic_uint enabled;
static unsigned int last_enabled;

/* @ret_installed: whether a layer was installed, and not there already */
static int install(struct chain *chain, bool *ret_installed)
{
	struct sigaction now = { .sa_flags = 0 }, replaced = { .sa_flags = 0 }, ours;
	struct action below, found;
	struct layer *layer;
	int err;

	for (;;) {
		err = gmem_sys_sigaction(chain->signal, NULL, &now);
		if (err)
			return gmem_fail(err, "recovery: %s has no handlers here: %s", chain->name,
					 gmem_errno_name(err));
		if (layer_of(chain, &now))
			return 0;

		below = shorten(&now);
		layer = take_layer(chain, &below);
		if (!layer)
			return gmem_fail(-EBUSY, "recovery: %d handlers of %s were installed over "
					 "libgmem's and may still lead to it", LAYERS, chain->name);

		ours = action_of(chain, layer);
		err = gmem_sys_sigaction(chain->signal, &ours, &replaced);
		if (err)
			return gmem_fail(err, "recovery: %s cannot be handled here: %s", chain->name,
					 gmem_errno_name(err));
		*ret_installed = true;
		found = shorten(&replaced);
		if (is_same(&found, &below))
			return 0;

		/* Another handler was installed in between: put it back and start over. */
		gmem_sys_sigaction(chain->signal, &replaced, NULL);
	}
}

/* If another handler is over ours, ours stays, and passes signals on. */
static void uninstall(struct chain *chain)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	struct sigaction now = { .sa_flags = 0 }, below;
	struct layer *layer = NULL;

	if (gmem_sys_sigaction(chain->signal, NULL, &now) == 0)
		layer = layer_of(chain, &now);
	if (layer) {
		below = lengthen(&layer->below);
		gmem_sys_sigaction(chain->signal, atomic_load(&layer->spent) ? &standard : &below,
				   NULL);
	}
}

static int install_all(void)
{
	bool installed[GMEM_ARRAY_SIZE(chains)] = { false };
	int err = 0;

	for (size_t i = 0; i < GMEM_ARRAY_SIZE(chains) && !err; i++)
		err = install(&chains[i], &installed[i]);
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(chains) && err; i++) {
		if (installed[i])
			uninstall(&chains[i]);
	}
	return err;
}

GMEM_API int gmem_recovery_enable(void)
{
	int err;

	gmem_nofault_choose(GMEM_NOFAULT_WIDEST);

	gmem_lock_take(&lock);
	err = install_all();
	if (!err && atomic_fetch_add(&users, 1) == 0)
		atomic_store(&enabled, ++last_enabled);
	gmem_lock_drop(&lock);
	return err;
}

GMEM_API void gmem_recovery_disable(void)
{
	gmem_lock_take(&lock);
	if (atomic_load(&users) > 0 && atomic_fetch_sub(&users, 1) == 1) {
		atomic_store(&enabled, 0);
		for (size_t i = 0; i < GMEM_ARRAY_SIZE(chains); i++)
			uninstall(&chains[i]);
	}
	gmem_lock_drop(&lock);
}

bool gmem_nofault_is_recoverable(void)
{
	sigset_t blocked;

	sigemptyset(&blocked);
	if (!atomic_load(&users) || gmem_sys_sigmask(SIG_BLOCK, NULL, &blocked))
		return false;

	for (size_t i = 0; i < GMEM_ARRAY_SIZE(chains); i++)
		if (sigismember(&blocked, chains[i].signal))
			return false;
	return true;
}

bool gmem_nofault_was_recoverable(void)
{
	static __thread unsigned int known;
	unsigned int now = atomic_load_explicit(&enabled, memory_order_relaxed);

	if (now && known != now && gmem_nofault_is_recoverable())
		known = now;
	return now && known == now;
}
