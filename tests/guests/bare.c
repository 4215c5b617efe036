/* A kernel that does what its command line says: "COMMAND [NUMBER]", for VMMs that enter it by PVH, in 32 bits.
   It ends by the reset line of the keyboard's controller, or with a status by QEMU's isa-debug-exit. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct start_info { u32 magic, version, flags, modules; u64 module_list, command_line; };
struct module { u64 address, size, command_line, reserved; };

__asm__(".section .note.Xen, \"a\", @note\n"
        ".balign 4\n"
        ".long 4, 4, 18\n"
        ".asciz \"Xen\"\n"
        ".long entry\n"
        ".text\n"
        ".globl entry\n"
        "entry: cld\n"
        "mov $stack + 4096, %esp\n"
        "push %ebx\n"
        "call kernel\n");

u8 stack[4096] __attribute__((aligned(16)));

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static u8 in8(u16 port) { u8 value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static u16 in16(u16 port) { u16 value; __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static u32 in32(u16 port) { u32 value; __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

/* -- the first serial port -- */

enum { SERIAL = 0x3f8, LINE_STATUS = SERIAL + 5, ROOM = 0x20, ALL_SENT = 0x40 };

static void put(const char *text, u32 size)
{
    for (u32 at = 0; at < size; at++) {
        while (!(in8(LINE_STATUS) & ROOM))
            ;
        out8(SERIAL, text[at]);
    }
}

static void print(const char *text)
{
    u32 size = 0;
    while (text[size])
        size++;
    put(text, size);
}

static void end(u32 status)
{
    while (!(in8(LINE_STATUS) & ALL_SENT))
        ;
    if (status)
        out16(0x501, status / 2);
    out8(0x64, 0xfe);
    for (;;)
        ;
}

/* -- the command line -- */

static int is(const char *text, const char *word)
{
    while (*word && *text == *word)
        text++, word++;
    return !*word && (*text == ' ' || !*text);
}

static const char *find(const char *text, const char *part)
{
    for (; *text; text++) {
        u32 at = 0;
        while (part[at] && text[at] == part[at])
            at++;
        if (!part[at])
            return text + at;
    }
    return 0;
}

static u32 number_in(const char *text)
{
    u32 number = 0;
    while (*text && *text != ' ')
        text++;
    while (*text == ' ')
        text++;
    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (*text - '0');
    return number;
}

static u32 hex(const char *text)
{
    u32 number = 0;
    for (;; text++) {
        u32 digit = *text - '0', letter = (*text | 32) - 'a';
        if (digit > 9 && letter > 5)
            return number;
        number = number << 4 | (digit <= 9 ? digit : letter + 10);
    }
}

/* -- virtio block: over PCI as of old, or memory-mapped where the command line says so -- */

enum { QUEUE = 256, IN = 0, OUT = 1, NEXT = 1, WRITABLE = 2, DRIVER_OK = 7 };

static struct {
    struct { u64 address; u32 size; u16 flags, next; } descriptor[QUEUE];
    struct { u16 flags, index, ring[QUEUE], event; } available;
    struct { volatile u16 flags, index; struct { u32 id, size; } ring[QUEUE]; u16 event; } used
        __attribute__((aligned(4096)));
} queue __attribute__((aligned(4096)));

static u32 mapped;
static u16 port;

static volatile u32 *device(u32 offset) { return (volatile u32 *)(mapped + offset); }

static int find_block(const char *line)
{
    const char *place = find(line, "virtio_mmio.device=4K@0x");
    if (place) {
        mapped = hex(place);
        if (*device(0x8) != 2)
            return 0;
        *device(0x70) = 0;
        *device(0x70) = 1; /* one step at a time */
        *device(0x70) = 3;
        *device(0x24) = 1; /* VIRTIO_F_VERSION_1 is bit 32 */
        *device(0x20) = 1;
        *device(0x70) = 11;
        *device(0x30) = 0;
        *device(0x38) = QUEUE;
        *device(0x80) = (u32)queue.descriptor, *device(0x84) = 0;
        *device(0x90) = (u32)&queue.available, *device(0x94) = 0;
        *device(0xa0) = (u32)&queue.used, *device(0xa4) = 0;
        *device(0x44) = 1;
        *device(0x70) = 15;
        return 1;
    }
    for (u32 slot = 0; slot < 32; slot++) {
        u32 place = 0x80000000 | slot << 11;
        out32(0xcf8, place);
        if (in32(0xcfc) != 0x10011af4)
            continue;
        out32(0xcf8, place | 4);
        out16(0xcfc, 5); /* I/O ports, bus master */
        out32(0xcf8, place | 0x10);
        port = in32(0xcfc) & ~3;
        out8(port + 18, 0);
        out8(port + 18, 3);
        out32(port + 4, 0);
        out16(port + 14, 0);
        if (in16(port + 12) != QUEUE)
            return 0;
        out32(port + 8, (u32)&queue >> 12);
        out8(port + 18, DRIVER_OK);
        return 1;
    }
    return 0;
}

static u8 transfer(u32 kind, u32 sector, void *data)
{
    static struct { u32 kind, reserved; u64 sector; } request;
    static volatile u8 status;
    request.kind = kind, request.sector = sector, status = 255;
    queue.descriptor[0].address = (u32)&request, queue.descriptor[0].size = 16;
    queue.descriptor[0].flags = NEXT, queue.descriptor[0].next = 1;
    queue.descriptor[1].address = (u32)data, queue.descriptor[1].size = 512;
    queue.descriptor[1].flags = NEXT | (kind == IN ? WRITABLE : 0), queue.descriptor[1].next = 2;
    queue.descriptor[2].address = (u32)&status, queue.descriptor[2].size = 1;
    queue.descriptor[2].flags = WRITABLE;
    u16 before = queue.used.index;
    queue.available.ring[queue.available.index % QUEUE] = 0;
    __asm__ volatile("" : : : "memory");
    queue.available.index++;
    __asm__ volatile("" : : : "memory");
    if (mapped)
        *device(0x50) = 0;
    else
        out16(port + 16, 0);
    while (queue.used.index == before)
        ;
    return status;
}

static u32 copy_blocks(const char *line)
{
    /* the first block, with its first byte changed, becomes the second */
    static char block[512];
    if (!find_block(line))
        return 3;
    if (transfer(IN, 0, block))
        return 5;
    print(block);
    block[0]++;
    return transfer(OUT, 1, block) ? 7 : 0;
}

void kernel(const struct start_info *info)
{
    const char *line = (const char *)(u32)info->command_line;
    if (is(line, "echo"))
        print(line);
    if (is(line, "exit"))
        end(number_in(line));
    if (is(line, "spin"))
        for (print("spinning\n");;)
            ;
    if (is(line, "flood"))
        for (u32 count = number_in(line); count; count--)
            print("0123456789abcde\n");
    if (is(line, "copy"))
        end(copy_blocks(line));
    if (is(line, "initrd") && info->modules) {
        const struct module *module = (const struct module *)(u32)info->module_list;
        put((const char *)(u32)module->address, module->size);
    }
    if (is(line, "halt"))
        __asm__ volatile("cli; hlt");
    if (is(line, "crash"))
        __asm__ volatile("ud2");
    end(0);
}
