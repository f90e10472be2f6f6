#include "CLinux.h"

#include <string.h>

static uint32_t plain(uint32_t crc, const unsigned char *data, size_t length) {
  while (length--) {
    crc ^= *data++;
    for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
  }
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t fast(uint32_t crc, const unsigned char *data, size_t length) {
  uint64_t wide = crc;
  for (; length >= 8; data += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    wide = __builtin_ia32_crc32di(wide, word);
  }
  crc = (uint32_t)wide;
  for (; length > 0; data++, length--) crc = __builtin_ia32_crc32qi(crc, *data);
  return crc;
}
static int has_fast(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__)
#include <sys/auxv.h>
__attribute__((target("crc"))) static uint32_t fast(uint32_t crc, const unsigned char *data, size_t length) {
  for (; length >= 8; data += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    crc = __builtin_arm_crc32cd(crc, word);
  }
  for (; length > 0; data++, length--) crc = __builtin_arm_crc32cb(crc, *data);
  return crc;
}
static int has_fast(void) { return (getauxval(AT_HWCAP) & (1 << 7)) != 0; }
#else
static uint32_t fast(uint32_t crc, const unsigned char *data, size_t length) { return plain(crc, data, length); }
static int has_fast(void) { return 0; }
#endif

uint32_t clinux_crc32c(uint32_t crc, const void *data, size_t length) {
  return ~(has_fast() ? fast : plain)(~crc, data, length);
}
