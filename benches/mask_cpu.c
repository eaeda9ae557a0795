/* Hides a processor's newer instructions from a program and all that it starts, to measure as on an older machine.
 *
 *     gcc -O2 -shared -fPIC -o mask_cpu.so benches/mask_cpu.c
 *     MASK_CPU=avx2 LD_PRELOAD=$PWD/mask_cpu.so python3 benches/beside_openvino.py ...
 *
 * MASK_CPU is avx2 (no AVX-512, no AMX), avx512 (no bf16, no AMX) or avx512bf16 (no AMX). Linux on x86-64, where /proc/cpuinfo has
 * cpuid_fault: the kernel then lets CPUID fault, and its answer is given here with bits left out. A peer that asks the processor
 * itself, as oneDNN and MLAS do, believes it; options such as ONEDNN_MAX_CPU_ISA reach only one of them.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static int avx512, bf16;

static long cpuid_works(unsigned long yes) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, yes); }

/* Leaves bits out of the answer in r, in the order eax, ebx, ecx, edx. */
static void mask(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
    if (leaf == 7 && subleaf == 0) {
        r[3] &= ~(BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* AMX, AVX512-FP16 */
        if (!avx512) {
            r[1] &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
            r[2] &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
            r[3] &= ~(BIT(2) | BIT(3) | BIT(8));
        }
    } else if (leaf == 7 && subleaf == 1) {
        r[0] &= ~(BIT(21) | BIT(23)); /* AMX-FP16, AVX-IFMA */
        r[3] = 0;
        if (!avx512)
            r[0] &= ~BIT(4); /* AVX-VNNI */
        if (!bf16)
            r[0] &= ~BIT(5); /* AVX512-BF16 */
    } else if (leaf == 0x1d || leaf == 0x1e) { /* tiles */
        memset(r, 0, 4 * sizeof *r);
    }
}

static void answer(int sig, siginfo_t *info, void *context) {
    (void)info;
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)g[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID: a real fault */
        signal(sig, SIG_DFL);
        return;
    }
    uint32_t leaf = g[REG_RAX], subleaf = g[REG_RCX], r[4];
    cpuid_works(1);
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
    cpuid_works(0);
    mask(leaf, subleaf, r);
    g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
    g[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    const char *level = getenv("MASK_CPU");
    bf16 = level && !strcmp(level, "avx512bf16");
    avx512 = bf16 || (level && !strcmp(level, "avx512"));
    if (!avx512 && (!level || strcmp(level, "avx2"))) {
        static const char words[] = "MASK_CPU must be avx2, avx512 or avx512bf16\n";
        (void)!write(2, words, sizeof words - 1);
        _exit(2);
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &action, 0);
    if (cpuid_works(0)) {
        static const char words[] = "this machine or kernel cannot let CPUID fault\n";
        (void)!write(2, words, sizeof words - 1);
        _exit(2);
    }
}
