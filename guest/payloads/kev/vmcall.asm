; The processor's own hypercall instructions: what they do depends on the host, and neither may hang. For each it writes
; to port 0x42 what it saw: 1 for #UD, 2 where KVM answered.
%include "kev.inc"
%macro try 1
    xor ebx, ebx
    mov eax, 0x7FFF             ; no call of KVM's
    %1
    mov al, 1
    test ebx, ebx
    jnz %%say
    mov al, 2
%%say:
    out 0x42, al
%endmacro
    begin64
    handle 6, .undefined
    load_idt
    try vmcall
    try vmmcall
    finish
.undefined:
    inc ebx
    add qword [rsp], 3          ; both are three bytes
    iretq
