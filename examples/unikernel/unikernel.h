/*
 * What a unikernel for Solo5's target hvt, version 2, on x86_64 is made of: the notes that say what it is, what it
 * is started with, and the calls that it can make. There is no library below it.
 *
 * A unikernel includes this once, defines DEVICES (entries of struct device) before when it has any, and defines
 *
 *     int unikernel(const struct boot_info *boot);
 *
 * which returns its exit status. It is compiled for integer registers only, so that it runs on a KVM that emulates.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

struct block { u64 capacity; u16 block_size; };
struct net { u8 mac[6]; u16 mtu; };

struct device {
    char name[68];
    u32 type;
    union { struct block block; struct net net; u64 size[2]; } properties;
    u64 own;
    u8 attached;
};

struct manifest { u32 version, entries; struct device device[]; };

struct boot_info {
    u64 memory_size, kernel_end, cycles_per_second;
    const char *command_line;
    const struct manifest *manifest;
    u32 host_features, guest_features;
    u64 net_ring;
};

#define BLOCK_DEVICE(title) { .name = title, .type = 1 }
#define NET_DEVICE(title) { .name = title, .type = 2 }

#ifdef DEVICES
#define DECLARED (sizeof (struct device[]){ DEVICES } / sizeof(struct device))
#else
#define DEVICES
#define DECLARED 0
#endif

#ifndef ABI_TARGET
#define ABI_TARGET 1 /* hvt */
#endif
#ifndef ABI_VERSION
#define ABI_VERSION 2
#endif

struct note { u32 name_size, content_size, type; char name[8]; };

static const struct { struct note note; u32 target, version, reserved[2]; } abi_note
    __attribute__((section(".note.solo5.abi"), aligned(4), used)) = {
    { 6, 16, 0x31494241, "Solo5" }, ABI_TARGET, ABI_VERSION, { 0, 0 },
};

static const struct {
    struct note note;
    u32 padding, version, entries;
    struct device device[1 + DECLARED];
} manifest_note __attribute__((section(".note.solo5.manifest"), aligned(8), used)) = {
    { 6, 12 + sizeof(struct device) * (1 + DECLARED), 0x3154464d, "Solo5" },
    0, 1, 1 + DECLARED, { { .type = 1u << 30 }, DEVICES },
};

enum { WALLTIME = 1, PUTS, POLL, BLOCK_WRITE, BLOCK_READ, NET_WRITE, NET_READ, HALT };

static inline void call(int number, volatile void *argument)
{
    __asm__ volatile("outl %0, %1" : : "a"((u32)(u64)argument), "d"((u16)(0x500 + number)) : "memory");
}

static u64 length(const char *text)
{
    u64 count = 0;
    while (text[count])
        count++;
    return count;
}

static void print(const char *text)
{
    volatile struct { const char *data; u64 length; } argument = { text, length(text) };
    call(PUTS, &argument);
}

static void __attribute__((noreturn)) halt(int status)
{
    volatile struct { u64 cookie; int status; } argument = { 0, status };
    call(HALT, &argument);
    for (;;)
        ;
}

static int unikernel(const struct boot_info *boot);

void __attribute__((noreturn, used)) _start(const struct boot_info *boot)
{
    halt(unikernel(boot));
}
