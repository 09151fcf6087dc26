// Writes a text to the queues with string instructions, and reads it again.
#include "kev.inc"
    .set BACK, 0x15000

    .macro there_and_back outs, ins, count
    mov esi, offset text
    mov ecx, \count
    rep \outs
    mov edi, BACK
    mov ecx, \count
    rep \ins
    mov esi, offset text
    mov edi, BACK
    mov ecx, 16
    repe cmpsb
    jne wrong
    .endm

    mov edx, FIFO
    there_and_back outsb, insb, 16
    there_and_back outsw, insw, 8
    there_and_back outsd, insd, 4
    finish
wrong:
    hlt
text:
    .ascii "sixteen letters!"
