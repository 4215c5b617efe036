/* What a unikernel was told of its network device, as text: the MAC address and the MTU, in hexadecimal. */

enum { LINK_TEXT = 17 };

static void describe_link(const struct device *device, char *text)
{
    const u8 *mac = device->properties.net.mac;
    u16 mtu = device->properties.net.mtu;
    u8 bytes[8] = { mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], mtu >> 8, mtu & 255 };
    for (int at = 0; at < 16; at++)
        text[at] = "0123456789abcdef"[bytes[at / 2] >> (at % 2 ? 0 : 4) & 15];
    text[16] = '\n';
}
